import json

import pytest
import torch

from aepo.control.adaptive_coefficient import AdaptiveCoefficient
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from tests import builders as b

SKYWORK = AdaptiveCoefficient(sensor="sampled", comparison="strict", gate="open", delta=1e-4, high=0.005)


def after(control, *entropies, state=None):
    """The states after steps that measured these entropies, exactly and by samples."""
    states = [state or control.initial_state()]
    for number, entropy in enumerate(entropies):
        states.append(control.update(states[-1], b.measured(entropy, number)))
    return states[1:]


@pytest.mark.parametrize("comparison", ["strict", "inclusive"])
@pytest.mark.parametrize("sensor", ["exact", "sampled"])
def test_golden_sequence_of_coefficients_and_gates(comparison, sensor):
    control = AdaptiveCoefficient(start=0.01, comparison=comparison, sensor=sensor)
    states = after(control, 0.3, 0.1, 0.1, 0.25)
    assert [s["value"] for s in states] == pytest.approx([0.005, 0.010, 0.015, 0.010])
    # What steps 1 to 5 act on: off in the first, then gated by the entropy of the step before.
    acted = [control.initial_state(), *states]
    assert [s["coefficient"] for s in acted] == pytest.approx([0.0, 0.0, 0.010, 0.015, 0.0])
    assert [s["error"] for s in states] == pytest.approx([-0.1, 0.1, 0.1, -0.05])


def test_golden_an_open_gate_gives_the_first_step_its_bonus():
    """The gates of Skywork's code after 0.3, 0.1 at a target of 0.2 are 1, 0, 1; TRL's are 0, 0, 1."""
    for gate, first in (("open", 0.01), ("closed", 0.0)):
        control = AdaptiveCoefficient(start=0.01, comparison="strict", gate=gate)
        states = [control.initial_state(), *after(control, 0.3, 0.1)]
        assert [s["coefficient"] for s in states] == pytest.approx([first, 0.0, 0.010])
        assert [s["value"] for s in states] == pytest.approx([0.01, 0.005, 0.010])


def test_golden_at_the_target_itself_inclusive_is_below_and_strict_is_above():
    inclusive, strict = (
        after(AdaptiveCoefficient(target=Target("0.25"), start=0.01, comparison=comparison), 0.25)[0]
        for comparison in ("inclusive", "strict")
    )
    assert (inclusive["value"], inclusive["coefficient"]) == (pytest.approx(0.015), pytest.approx(0.015))
    assert (strict["value"], strict["coefficient"]) == (pytest.approx(0.005), 0.0)


def test_golden_skyworks_settings():
    states = after(SKYWORK, 0.3, 0.1, 0.1)
    assert [s["value"] for s in states] == pytest.approx([0.0, 1e-4, 2e-4])
    assert after(SKYWORK, *[0.1] * 60)[-1]["value"] == 0.005


def test_the_coefficient_stays_within_its_bounds():
    control = AdaptiveCoefficient(start=0.01, low=0.008, high=0.012)
    assert after(control, 0.3)[0]["value"] == 0.008
    assert after(control, 0.1)[0]["value"] == 0.012


def test_the_two_sensors():
    rows = [b.sample(1.0, tokens=(1, 2)), b.sample(1.0, extra=True, tokens=(1, 2))]
    batch = b.scored(rows, logprobs=[[-0.1, -0.5], [-9.0, -9.0]], entropy=0.7)
    measured = b.measured(0.7, batch=batch)
    assert AdaptiveCoefficient().reading(measured) == 0.7
    assert SKYWORK.reading(measured) == pytest.approx(0.3)


def test_the_penalty_is_the_gated_coefficient_times_the_exact_entropy():
    control = AdaptiveCoefficient(start=0.01)
    batch = b.scored([b.sample(1.0, tokens=(1,)), b.sample(0.0, tokens=(1, 2))], entropy=0.5)
    assert control.penalty(batch, batch.old, control.initial_state()) is None  # the first step
    state = after(control, 0.1)[0]
    torch.testing.assert_close(control.penalty(batch, batch.old, state), -0.015 * 0.5 * batch.batch.mask)
    assert control.needs(state).entropy_gradient


def test_a_step_down_the_loss_raises_the_entropy():
    logits = torch.tensor([[[2.0, 1.0, 0.0]]], requires_grad=True)
    batch = b.scored([b.sample(1.0, tokens=(1,))])
    new = b.token_policy(logits, [[0]])
    AdaptiveCoefficient().penalty(batch, new, {"coefficient": 0.1}).sum().backward()
    assert b.token_policy(logits.detach() - logits.grad, [[0]]).entropy > new.entropy


def test_it_goes_on_from_a_checkpoint():
    control = AdaptiveCoefficient(start=0.01)
    straight = after(control, 0.3, 0.1, 0.1)[-1]
    saved = json.loads(json.dumps(after(control, 0.3)[-1]))
    assert after(control, 0.1, 0.1, state=saved)[-1] == straight


def test_a_step_that_measured_nothing_changes_nothing():
    state = after(AdaptiveCoefficient(), 0.1)[0]
    assert AdaptiveCoefficient().update(state, b.measured(float("nan"), 1)) == state


def test_a_relative_target_is_taken_from_the_first_reading():
    states = after(AdaptiveCoefficient(target=Target("0.5x")), 0.8, 0.5)
    assert [s["target_entropy"] for s in states] == pytest.approx([0.4, 0.4])


@pytest.mark.parametrize(
    "fields", [{"delta": 0.0}, {"low": -0.1}, {"low": 2.0}, {"start": 1.5}, {"delta": float("nan")}]
)
def test_bad_values_are_refused(fields):
    with pytest.raises(InvalidValue, match=rf"^control\.{next(iter(fields))}: got"):
        AdaptiveCoefficient(**fields)
