import math
from dataclasses import replace

import pytest
import torch

from aepo.control.clip_cov import ClipCov
from aepo.control.tokens import covariance
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from aepo.types import BatchStatistics
from tests import builders as b

LOGPROBS = torch.tensor([0.9, 0.9, 0.1, 0.1]).log()[:, None]
ADVANTAGES = (1.0, -1.0, 1.0, -1.0)
# (log 0.9 - log 0.1) / 2 = log(9) / 2 from the mean, times an advantage of 1.
C = math.log(9) / 2


def four(**changes):
    """Confident right, confident wrong, rare right, rare wrong."""
    return b.scored([b.sample(0.0, a, tokens=(1,)) for a in ADVANTAGES], logprobs=LOGPROBS, **changes)


def hundred(step=1):
    """Two rows of 50 tokens, each with C = 2: all eligible."""
    rows = [b.sample(1.0, 1.0, tokens=(1,) * 50), b.sample(0.0, -1.0, tokens=(1,) * 50)]
    return b.scored(rows, logprobs=torch.tensor([[-0.1], [-4.1]]), step=b.place(step))


def shaped(control, scored):
    return control.shape(scored.batch.advantages, b.marked(control, scored), {})


def reshaped(control, scored, logprobs):
    new = BatchStatistics(logprobs, scored.old.entropy)
    return control.reshape(scored.batch.advantages, b.marked(control, scored), new, {})


def whole(control, scored):
    """Both moments of an update in one microbatch, before the policy has moved."""
    batch = replace(scored.batch, advantages=shaped(control, scored))
    return reshaped(control, replace(scored, batch=batch), scored.old.logprobs)


def test_golden_covariance_of_four_tokens():
    scored = four()
    found = covariance(scored.old.logprobs, scored.batch.advantages, scored.trained)
    assert found[:, 0].tolist() == pytest.approx([C, -C, -C, C]) and pytest.approx(1.0986, abs=1e-4) == C


@pytest.mark.parametrize("selection", ["batch", "microbatch"])
def test_golden_confident_right_and_rare_wrong_tokens_lose_their_advantage(selection):
    assert whole(ClipCov(share=0.5, selection=selection), four())[:, 0].tolist() == [0, -1, 1, 0]


@pytest.mark.parametrize(("low", "high"), [(1.1, 5.0), (0.5, 1.09)])
def test_only_tokens_strictly_between_the_bounds_are_eligible(low, high):
    scored = four()
    assert torch.equal(shaped(ClipCov(share=1.0, low=low, high=high), scored), scored.batch.advantages)


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.079, 7), (2e-4, 1), (1e-9, 1), (1.0, 100)])
def test_golden_count_is_the_floor_of_the_share_and_at_least_one(share, count):
    scored = hundred()
    assert (shaped(ClipCov(share=share), scored) == 0).sum() == count


def test_golden_count_is_at_most_the_eligible():
    assert (shaped(ClipCov(share=1.0), four()) == 0).sum() == 2


@pytest.mark.parametrize("selection", ["batch", "microbatch"])
def test_the_draw_is_a_function_of_seed_and_step(selection):
    first, again, other = (whole(ClipCov(share=0.1, selection=selection), hundred(step)) for step in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_eligible_token_is_drawn_about_equally_often():
    zeros = sum((shaped(ClipCov(share=0.1), hundred(step)) == 0).float() for step in range(400))
    assert zeros.sum() == 4000 and zeros.min() > 15 and zeros.max() < 70  # 40 each, standard deviation 6


def test_padding_and_untrained_rows_are_neither_counted_nor_chosen():
    long, short = b.sample(1.0, 1.0, tokens=(1,) * 4), b.sample(0.0, -1.0, tokens=(1,) * 2)
    out = replace(b.sample(1.0, 1.0, tokens=(1,) * 4), trained=False)
    scored = b.scored([long, short, out], logprobs=torch.tensor([[-0.1], [-4.1], [-0.1]]))
    result = shaped(ClipCov(share=1.0, low=0.0), scored)
    assert (result[:2] == 0).all() and torch.equal(result[2], scored.batch.advantages[2])


def test_golden_microbatch_leaves_out_what_the_clip_has_stopped():
    # The confident right token has moved by 1.5, beyond 1.2, so the rare wrong one is alone.
    scored = four()
    old = replace(scored.old, logprobs=scored.old.logprobs - torch.tensor([[math.log(1.5)], [0.0], [0.0], [0.0]]))
    control = ClipCov(share=1.0, selection="microbatch")
    assert reshaped(control, replace(scored, old=old), LOGPROBS)[:, 0].tolist() == [1, -1, 1, 0]
    wide = replace(control, clip_low=1.0, clip_high=1.0)
    assert reshaped(wide, replace(scored, old=old), LOGPROBS)[:, 0].tolist() == [0, -1, 1, 0]


def test_microbatch_takes_its_means_within_the_microbatch():
    # Tokens 0 and 1 alone have equal log-probabilities: no covariance.
    control, scored = ClipCov(share=1.0, selection="microbatch"), four()
    part = b.marked(control, scored).select(torch.tensor([0, 1]))
    result = control.reshape(part.batch.advantages, part, part.old, {})
    assert torch.equal(result, part.batch.advantages)


def gradient(advantages, scored):
    new = scored.old.logprobs.clone().requires_grad_()
    policy_loss(new, scored.old.logprobs, advantages, token_mean(scored.batch.mask), Clip()).loss.backward()
    return new.grad


def test_chosen_tokens_get_no_gradient_and_the_others_the_base_losss():
    scored = hundred()
    for share, count in ((0.2, 20), (1e-9, 1)):  # a vanishing share leaves the base loss but for one token
        advantages = shaped(ClipCov(share=share), scored)
        zeroed, base, found = advantages == 0, gradient(scored.batch.advantages, scored), gradient(advantages, scored)
        assert zeroed.sum() == count
        assert (found[zeroed] == 0).all() and torch.equal(found[~zeroed], base[~zeroed])


@pytest.mark.parametrize(
    ("field", "value"),
    [("share", 0.0), ("share", 1.1), ("low", 5.0), ("low", float("nan")), ("clip_low", 0.0), ("clip_high", 0.0)],
)
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        ClipCov(**{field: value})
