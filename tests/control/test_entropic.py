import math

import pytest
import torch

from aepo.control.entropic import EntroPIC
from aepo.control.laws import PI
from aepo.control.schedules import Target
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from tests import builders as b


def four():
    """Right and wrong, confident (0.99) and not (0.9)."""
    rows = [b.sample(0.0, a, tokens=(1,)) for a in (2.0, -2.0, 2.0, -2.0)]
    return b.scored(rows, logprobs=torch.tensor([0.99, 0.99, 0.9, 0.9]).log()[:, None])


def weights(command, **fields):
    scored = four()
    shaped = EntroPIC(**fields).shape(scored.batch.advantages, scored, {"command": command})
    return (shaped / scored.batch.advantages)[:, 0].tolist()


def test_golden_weights_of_confident_tokens():
    assert weights(0.4) == pytest.approx([0.6, 1.4, 1, 1])  # a = -0.4
    assert weights(-0.4) == pytest.approx([1.4, 0.6, 1, 1])
    assert weights(1.0) == pytest.approx([0, 2, 1, 1])
    assert weights(0.4, threshold=0.8) == pytest.approx([0.6, 1.4, 0.6, 1.4])
    assert weights(0.4, threshold=0.995) == [1, 1, 1, 1]


def test_golden_the_law_is_the_papers_pi_with_the_opposite_sign():
    # e = 0.2 - 0.5, then 0.3 - 0.5: a = -0.3 - 0.003, then -0.2 - 0.005.
    control = EntroPIC(target=Target("0.5"))
    first = control.update(control.initial_state(), b.measured(0.2))
    second = control.update(first, b.measured(0.3, step=1))
    assert [first["command"], second["command"]] == pytest.approx([0.303, 0.205])
    assert first["error"] == pytest.approx(0.3)


def test_entropy_below_the_target_lowers_the_weight_of_confident_positives():
    control, scored = EntroPIC(target=Target("0.5")), four()
    for entropy, sign in ((0.2, 1), (0.8, -1)):
        state = control.update(control.initial_state(), b.measured(entropy))
        gain = control.shape(scored.batch.advantages, scored, state) - scored.batch.advantages
        assert (gain[:2] * sign < 0).all() and (gain[2:] == 0).all()


def test_the_first_step_is_the_base_algorithm():
    control, scored = EntroPIC(), four()
    shaped = control.shape(scored.batch.advantages, scored, control.initial_state())
    assert torch.equal(shaped, scored.batch.advantages)


def entropy_after_a_step(control, state):
    """One policy gradient step on the logits that all rows share; each token appears with both signs."""
    logits = torch.tensor([4.0, 0.0, -1.0], requires_grad=True)
    labels = [[0], [0], [0], [1], [2]]
    new = b.token_policy(logits.expand(5, 1, 3), labels)
    rows = [b.sample(0.0, a, tokens=(1,)) for a in (1.0, 1.0, -0.5, -1.0, -0.5)]
    scored = b.scored(rows, logprobs=new.logprobs.detach(), entropy=new.entropy.detach())
    advantages = scored.batch.advantages if control is None else control.shape(scored.batch.advantages, scored, state)
    weights = token_mean(scored.batch.mask)
    policy_loss(new.logprobs, scored.old.logprobs, advantages, weights, Clip()).loss.backward()
    after = (logits - 0.5 * logits.grad).detach().log_softmax(-1)
    return -(after.exp() * after).sum().item()


def test_a_step_moves_entropy_towards_the_target_relative_to_the_base_algorithm():
    control, base = EntroPIC(target=Target("0.5")), entropy_after_a_step(None, {})
    low, high = (control.update(control.initial_state(), b.measured(entropy)) for entropy in (0.1, 0.9))
    assert entropy_after_a_step(control, high) < base < entropy_after_a_step(control, low)


def test_a_step_that_measured_nothing_leaves_the_state():
    state = {**EntroPIC().initial_state(), "command": 0.2}
    assert EntroPIC().update(state, b.measured(math.nan)) == state


def test_gains_are_the_laws():
    control = EntroPIC(law=PI(gain=2.0, integral_steps=10.0), target=Target("0.5"))
    assert control.update(control.initial_state(), b.measured(0.4))["command"] == pytest.approx(0.22)


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_bad_values_are_refused(value):
    with pytest.raises(InvalidValue, match=r"^control\.threshold: got"):
        EntroPIC(threshold=value)
