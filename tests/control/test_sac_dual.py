import math

import pytest
import torch

from aepo.control.sac_dual import SACDual
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from tests import builders as b


def after(control, *entropies):
    states = [control.initial_state()]
    for number, entropy in enumerate(entropies):
        states.append(control.update(states[-1], b.measured(entropy, number)))
    return states[1:]


def test_golden_log_alpha_moves_by_the_rate_times_the_error():
    # target 0.5, rate 0.1, alpha_0 1e-3: errors +0.5, -0.5, -1 -> log alpha -6.907755 + 0.05, - 0.05, - 0.1.
    states = after(SACDual(), 0.0, 1.0, 1.5)
    assert [s["coefficient"] for s in states] == pytest.approx([1.0512711e-3, 1e-3, 0.9048374e-3])
    assert [s["error"] for s in states] == pytest.approx([0.5, -0.5, -1.0])


def test_golden_it_is_the_descent_of_sacs_dual_objective_in_log_alpha():
    # J = log alpha * (H - Hbar): dJ / d log alpha = H - Hbar.
    log_alpha = torch.tensor(math.log(1e-3), dtype=torch.float64, requires_grad=True)
    (log_alpha * (0.2 - 0.5)).backward()
    stepped = (log_alpha - 0.1 * log_alpha.grad).exp().item()
    assert after(SACDual(), 0.2)[0]["coefficient"] == pytest.approx(stepped)


def test_alpha_stays_positive_and_within_its_bounds():
    assert after(SACDual(), *[9.0] * 50)[-1]["coefficient"] == pytest.approx(1e-5)
    assert after(SACDual(rate=1e4), 0.0)[-1]["coefficient"] == pytest.approx(0.03)
    assert after(SACDual(rate=1e4), 0.0, 0.6, 0.4)[-1]["coefficient"] == pytest.approx(0.03)


def test_the_bonus_acts_from_the_first_step_on():
    control = SACDual()
    batch = b.scored([b.sample(1.0, tokens=(1,)), b.sample(0.0, tokens=(1, 2))], entropy=0.5)
    penalty = control.penalty(batch, batch.old, control.initial_state())
    torch.testing.assert_close(penalty, -1e-3 * 0.5 * batch.batch.mask)
    assert control.needs(control.initial_state()).entropy_gradient


def test_the_gradient_is_alpha_times_the_exact_entropys():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]], requires_grad=True)
    batch = b.scored([b.sample(1.0, tokens=(1,))])
    SACDual().penalty(batch, b.token_policy(logits, [[0]]), {"coefficient": 0.5}).sum().backward()
    w = torch.tensor([0.326688, -0.116701, -0.130076, -0.079911])  # p (log p + H)
    torch.testing.assert_close(logits.grad[0, 0], 0.5 * w, atol=1e-6, rtol=0)


def test_a_relative_target_is_taken_from_the_first_entropy():
    states = after(SACDual(target=Target("0.5x")), 0.8, 0.5)
    assert [s["target_entropy"] for s in states] == pytest.approx([0.4, 0.4])


def test_a_step_that_measured_nothing_changes_nothing():
    state = after(SACDual(), 0.1)[0]
    assert SACDual().update(state, b.measured(float("nan"), 1)) == state


@pytest.mark.parametrize(
    "fields",
    [{"rate": 0.0}, {"low": 0.0}, {"start": 0.0}, {"high": float("inf")}, {"low": 1.0}, {"rate": float("nan")}],
)
def test_bad_values_are_refused(fields):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(fields))}: got"):
        SACDual(**fields)
