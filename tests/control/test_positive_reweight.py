import math
from dataclasses import replace

import pytest
import torch

from aepo.control.positive_reweight import PositiveReweight
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from research.theory import expected_gradient
from tests import builders as b


def rows(step=None, tokens: int = 1):
    advantages = (2.0, -1.0, 0.0, 0.5)
    return b.scored([b.sample(1.0, a, tokens=(1,) * tokens) for a in advantages], step=step)


def shaped(control, weight: float):
    batch = rows()
    return control.shape(batch.batch.advantages, batch, {"coefficient": weight}).flatten().tolist()


@pytest.mark.parametrize(
    ("weight", "expected"), [(0.0, [0, -1, 0, 0]), (0.5, [1, -1, 0, 0.25]), (1.0, [2, -1, 0, 0.5])]
)
def test_golden_lambda_multiplies_what_is_positive(weight, expected):
    assert shaped(PositiveReweight(), weight) == expected


def test_golden_lambda_follows_the_entropy():
    control = PositiveReweight()
    state = control.initial_state()
    assert state["coefficient"] == 0.0
    seen = []
    for step, entropy in enumerate((0.3, 0.5, 0.2, 0.19, 0.1, 0.1, 0.1)):
        state = control.update(state, b.measured(entropy, step))
        seen.append(state["coefficient"])
    assert seen == pytest.approx([0.05, 0.1, 0.15, 0.1, 0.05, 0.0, 0.0])  # 0.2 is not under the threshold
    for step in range(25):
        state = control.update(state, b.measured(1.0, step))
    assert state["coefficient"] == 1.0 and state["error"] == pytest.approx(-0.8)


def scheduled(control, steps: int):
    """lambda of each step, read off an advantage of 1; and the state's, which must be the same."""
    state, seen = control.initial_state(), []
    for number in range(steps):
        batch = b.scored([b.sample(1.0, 1.0, tokens=(1,))], step=b.place(number, steps=steps))
        seen.append(control.shape(batch.batch.advantages, batch, state).item())
        assert state["coefficient"] == pytest.approx(seen[-1])
        state = control.update(state, replace(b.measured(0.5), scored=batch))
    return seen


def test_golden_the_stages():
    assert scheduled(PositiveReweight(schedule="stage"), 10) == pytest.approx([0] * 5 + [0.2, 0.4, 0.6, 0.8, 1.0])
    assert scheduled(PositiveReweight(schedule="stage"), 5) == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])
    assert scheduled(PositiveReweight(schedule="stage"), 2) == [0, 1]


def test_golden_the_epochs():
    control = PositiveReweight(schedule="epoch", epochs=3)
    assert scheduled(control, 9) == pytest.approx([0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1])


def gradients(weight: float):
    batch = rows()
    logprobs = batch.old.logprobs.clone().requires_grad_()
    advantages = PositiveReweight().shape(batch.batch.advantages, batch, {"coefficient": weight})
    policy_loss(logprobs, batch.old.logprobs, advantages, batch.batch.mask, Clip()).loss.backward()
    return logprobs.grad.flatten().tolist()


def test_golden_the_gradient_of_positive_tokens_alone_is_weighted():
    assert gradients(1.0) == [-2, 1, 0, -0.5]
    assert gradients(0.25) == [-0.5, 1, 0, -0.125]
    assert gradients(0.0) == [0, 1, 0, 0]


# --- Rand-Pos-Clip --------------------------------------------------------------------------------------------


def clipped(control, step=None):
    batch = rows(step, tokens=50)
    result = control.shape(batch.batch.advantages, batch, control.initial_state())
    return result, batch.batch.advantages


def test_golden_a_share_of_the_positive_tokens_gets_nothing():
    control = PositiveReweight(start=1.0, step=0.0, random_share=0.1)
    result, before = clipped(control)
    changed = result != before
    assert changed.sum() == 10  # of 100 positive ones
    assert (before[changed] > 0).all() and (result[changed] == 0).all()


def test_the_share_is_drawn_anew_in_each_step_and_the_same_for_the_same_step():
    control = PositiveReweight(start=1.0, step=0.0, random_share=0.1)
    first, again, other = (clipped(control, b.place(number))[0] for number in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_start_one_and_step_zero_change_nothing():
    control = PositiveReweight(start=1.0, step=0.0)
    state = control.update(control.initial_state(), b.measured(0.01))
    batch = rows()
    assert torch.equal(control.shape(batch.batch.advantages, batch, state), batch.batch.advantages)


# --- state ----------------------------------------------------------------------------------------------------


def test_the_threshold_may_be_a_multiple_of_the_first_entropy():
    control = PositiveReweight(threshold=Target("0.5x"))
    state = control.update(control.initial_state(), b.measured(0.8))
    assert state["target_entropy"] == pytest.approx(0.4)
    assert control.update(state, b.measured(0.5, 1))["error"] == pytest.approx(-0.1)


def test_a_step_that_measured_nothing_changes_nothing():
    control = PositiveReweight()
    state = control.update(control.initial_state(), b.measured(0.5))
    assert control.update(state, b.measured(math.nan, 1)) == state


@pytest.mark.parametrize(
    ("field", "value"), [("step", -0.1), ("start", 1.5), ("epochs", 1), ("random_share", 2.0), ("step", float("nan"))]
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        PositiveReweight(**{field: value})


# --- one softmax ------------------------------------------------------------------------------------------------


def test_on_one_softmax_both_halves_of_the_gradient_point_the_same_way():
    """Expected and on-policy, the negatives' part is p / (1 - p) times the positives', p the chance of being right.

    So lambda only slows a single softmax down; that it raises entropy is about sampled, off-policy, shared weights.
    """
    logits, right = torch.tensor([1.0, 0.2, -0.5, 0.0, 0.7]), torch.tensor([True, False, True, False, False])
    probs = logits.softmax(0)
    p = probs[right].sum()
    signal = torch.where(right, ((1 - p) / p).sqrt(), -(p / (1 - p)).sqrt())
    batch = b.scored([b.sample(0.0, a, tokens=(1,)) for a in signal.tolist()])
    halves = []
    for weight in (0.0, 1.0):
        weighted = PositiveReweight().shape(batch.batch.advantages, batch, {"coefficient": weight})[:, 0]
        halves.append(expected_gradient(logits, probs, weighted))
    negative, positive = halves[0], halves[1] - halves[0]
    torch.testing.assert_close(negative, p / (1 - p) * positive)
