import math

import pytest
import torch

from aepo.control.moving_bound import MovingBound
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from tests import builders as b

PRESET = Clip(low=0.6, high=1.5, dual=50.0)


def one_token(advantage: float):
    return b.scored([b.sample(1.0, advantage, tokens=(1,))])


def gradient(ratio: float, advantage: float, k: float) -> float:
    """d loss / d log pi of one token; without a clip it is -ratio * advantage."""
    batch = one_token(advantage)
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    bounds = MovingBound().bounds(batch, batch.old, {"coefficient": k})
    policy_loss(
        logprobs, batch.old.logprobs, batch.batch.advantages, batch.batch.mask, PRESET, bounds=bounds
    ).loss.backward()
    return logprobs.grad.item()


def test_golden_the_bound_for_each_k():
    batch, control = one_token(1.0), MovingBound()
    for k, upper in ((0.0, 2.5), (0.25, 2.75), (2.5, 5.0)):
        bounds = control.bounds(batch, batch.old, {"coefficient": k})
        assert bounds.low == pytest.approx(0.6)  # ratio bound 0.4
        assert 1 + bounds.high == pytest.approx(upper)


def test_golden_k_follows_the_sign_of_the_error_and_stays_in_its_range():
    control = MovingBound()
    state, seen = control.initial_state(), []
    for step, entropy in enumerate((0.1, 0.29, 0.3, 0.9, 0.9, 0.9)):
        state = control.update(state, b.measured(entropy, step))
        seen.append(state["coefficient"])
    assert seen == [0.25, 0.5, 0.5, 0.25, 0.0, 0.0]
    for step in range(20):
        state = control.update(state, b.measured(0.0, step))
    assert state["coefficient"] == 2.5


@pytest.mark.parametrize(
    ("ratio", "advantage", "k", "expected"),
    [
        (2.6, 1.0, 0.0, 0.0),  # above 2.5
        (2.6, 1.0, 0.25, -2.6),  # below 2.75
        (0.3, -1.0, 2.5, 0.0),  # the lower bound does not move
        (0.5, -1.0, 2.5, 0.5),
        (30.0, -1.0, 0.0, 30.0),
        (51.0, -1.0, 0.0, 0.0),  # the outer cap
    ],
)
def test_golden_what_the_bounds_do_to_the_gradient(ratio, advantage, k, expected):
    assert gradient(ratio, advantage, k) == pytest.approx(expected, rel=1e-5)


def test_delta_zero_is_a_fixed_clip():
    control = MovingBound(delta=0.0)
    state = control.update(control.initial_state(), b.measured(0.01))
    assert control.bounds(one_token(1.0), one_token(1.0).old, state) == control.bounds(
        one_token(1.0), one_token(1.0).old, control.initial_state()
    )


def test_the_target_may_be_a_multiple_of_the_first_entropy():
    control = MovingBound(target=Target("0.5x"))
    state = control.update(control.initial_state(), b.measured(0.8))
    state = control.update(state, b.measured(0.3, 1))
    assert state["target_entropy"] == pytest.approx(0.4) and state["error"] == pytest.approx(0.1)


def test_a_step_that_measured_nothing_changes_nothing():
    control = MovingBound()
    state = control.update(control.initial_state(), b.measured(0.1))
    assert control.update(state, b.measured(math.nan, 1)) == state


def test_the_log_shows_the_k_that_the_step_acted_on():
    control = MovingBound()
    first = control.update(control.initial_state(), b.measured(0.1))
    report = control.report(first, control.update(first, b.measured(0.1, 1)))
    assert report.coefficient == 0.25 and report.target_entropy == 0.3


@pytest.mark.parametrize(("field", "value"), [("eps", 1.0), ("eps", 0.0), ("k_max", -1.0), ("delta", float("nan"))])
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        MovingBound(**{field: value})
