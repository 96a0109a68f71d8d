import pytest
import torch

from aepo.control.aer import AER
from aepo.control.base import Needs
from aepo.control.entropy_reg import EntropyReg
from aepo.control.schedules import Schedule, Target
from aepo.errors import InvalidValue
from tests import builders as b

BOUNDS = {"low": 0.0, "high": 0.05}


def groups(*rights, size=4):
    """Rows of one group each per number of right answers, of different lengths."""
    return [
        b.sample(float(i < right), group=group, tokens=(1,) * (i + 1), number=i)
        for group, right in enumerate(rights)
        for i in range(size)
    ]


def allocated(control, *rights):
    """lambda_q of each group, from the marks."""
    batch = b.marked(control, b.scored(groups(*rights)))
    assert (batch.marks["allocation"][batch.batch.mask == 0] == 0).all()
    return batch.marks["allocation"][::4, 0].tolist()


def after(control, *entropies):
    states = [control.initial_state()]
    for number, entropy in enumerate(entropies):
        states.append(control.update(states[-1], b.measured(entropy, number)))
    return states[1:]


def test_golden_the_allocation_falls_with_the_groups_accuracy():
    # rho 0.5, accuracies 0, 1/4, 2/4, 3/4, 1: (0.5 - g) / 0.5 down to 0.
    assert allocated(AER(), 0, 1, 2, 3, 4) == [1.0, 0.5, 0.0, 0.0, 0.0]
    assert allocated(AER(allocation="step"), 0, 1, 2, 3, 4) == [1.0, 1.0, 0.0, 0.0, 0.0]
    assert allocated(AER(allocation="uniform"), 0, 1, 2, 3, 4) == [1.0] * 5
    assert allocated(AER(rho=1.0), 0, 1, 2, 3, 4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_golden_alpha_follows_the_error_to_a_share_of_the_first_entropy():
    # H_0 = 1 -> H* = 0.4; eta 0.01; errors -0.6, +0.1, +0.3, -0.1; alpha from 0.002, never negative.
    control = AER(eta=0.01, start=0.002, **BOUNDS)
    states = after(control, 1.0, 0.3, 0.1, 0.5)
    assert [s["coefficient"] for s in states] == pytest.approx([0.0, 0.001, 0.004, 0.003])
    assert [s["error"] for s in states] == pytest.approx([-0.6, 0.1, 0.3, -0.1])
    assert [s["target_entropy"] for s in states] == pytest.approx([0.4] * 4)
    assert states[-1]["first_entropy"] == 1.0


def test_alpha_stops_at_its_upper_limit():
    assert after(AER(eta=1.0, **BOUNDS), 1.0, 0.1)[-1]["coefficient"] == 0.05


def test_golden_the_penalty_is_alpha_times_lambda_times_the_entropy():
    control, state = AER(), {"coefficient": 0.1}
    batch = b.marked(control, b.scored(groups(1), entropy=2.0))
    penalty = control.penalty(batch, batch.old, state)
    torch.testing.assert_close(penalty, -0.1 * 0.5 * 2.0 * batch.batch.mask)


def test_the_gradient_is_the_questions_share_of_the_entropys():
    rows = [b.sample(0.0, group=0, tokens=(1,)), b.sample(1.0, group=1, tokens=(1,))]
    control = AER()
    batch = b.marked(control, b.scored(rows))
    logits = torch.tensor([[[2.0, 1.0, 0.0]], [[2.0, 1.0, 0.0]]], requires_grad=True)
    new = b.token_policy(logits, [[0], [0]])
    (expected,) = torch.autograd.grad(-0.1 * new.entropy[0].sum(), logits, retain_graph=True)
    (got,) = torch.autograd.grad(control.penalty(batch, new, {"coefficient": 0.1}).sum(), logits)
    torch.testing.assert_close(got, expected)  # nothing for the question that is always right
    assert got[0].abs().sum() > 0


def test_uniform_allocation_and_a_fixed_alpha_are_entropy_reg():
    control = AER(allocation="uniform", eta=0.0, start=0.03)
    state = after(control, 1.0, 0.1)[-1]
    batch = b.marked(control, b.scored(groups(1, 3), entropy=0.7), state)
    reg = EntropyReg(coefficient=Schedule("0.03"))
    assert torch.equal(control.penalty(batch, batch.old, state), reg.penalty(batch, batch.old, {}))
    assert control.needs(state) == reg.needs({}) == Needs(entropy_gradient=True)


def test_the_first_step_measures_and_adds_nothing():
    control = AER()
    batch = b.marked(control, b.scored(groups(0), entropy=0.7))
    assert control.penalty(batch, batch.old, control.initial_state()) is None


def test_a_step_that_measured_nothing_changes_nothing():
    state = after(AER(), 1.0, 0.2)[-1]
    assert AER().update(state, b.measured(float("nan"), 2)) == state


def test_the_target_may_be_a_number():
    assert after(AER(target=Target("0.25")), 1.0)[0]["target_entropy"] == 0.25


@pytest.mark.parametrize(
    "fields",
    [{"rho": 0.0}, {"rho": 1.1}, {"eta": -0.1}, {"low": -0.1}, {"low": 1.0}, {"start": 1.0}, {"eta": float("nan")}],
)
def test_bad_values_are_refused(fields):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(fields))}: got"):
        AER(**fields)
