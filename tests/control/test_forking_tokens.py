from dataclasses import replace

import pytest
import torch

from aepo.control.forking_tokens import ForkingTokens
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Clip
from tests import builders as b


def batch(entropy, lengths=(5, 5), **changes):
    rows = [b.sample(1.0, a, tokens=(1,) * n) for a, n in zip((1.0, -2.0), lengths, strict=True)]
    return b.scored(rows, entropy=torch.tensor(entropy), logprobs=-0.5, **changes)


TEN = [[0.1, 0.2, 0.9, 0.4, 0.5], [0.6, 1.0, 0.8, 0.3, 0.7]]


def shaped(share, scored):
    return ForkingTokens(share=share).shape(scored.batch.advantages, scored, {})


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.2, [[0, 0, 1, 0, 0], [0, -2, 0, 0, 0]]),
        (0.39, [[0, 0, 1, 0, 0], [0, -2, -2, 0, 0]]),
        (0.01, [[0, 0, 0, 0, 0], [0, -2, 0, 0, 0]]),
    ],
)
def test_golden_the_top_tokens_of_the_batch_keep_their_advantage(share, expected):
    assert torch.equal(shaped(share, batch(TEN)), torch.tensor(expected, dtype=torch.float32))


def test_golden_ties_are_all_kept():
    # floor(0.2 * 10) = 2: the threshold is 0.8, which three tokens reach beside the 0.9.
    entropy = [[0.9, 0.8, 0.1, 0.8, 0.1], [0.1, 0.1, 0.8, 0.1, 0.1]]
    expected = [[1.0, 1, 0, 1, 0], [0, 0, -2, 0, 0]]
    assert torch.equal(shaped(0.2, batch(entropy)), torch.tensor(expected))


def test_padding_and_untrained_rows_do_not_set_the_threshold():
    scored = batch(TEN, lengths=(5, 2))
    assert torch.equal(shaped(2 / 7, scored) != 0, torch.tensor([[0, 0, 1, 0, 0], [0, 1, 0, 0, 0]]).bool())
    without = replace(scored, batch=replace(scored.batch, trained=torch.tensor([True, False])))
    assert shaped(0.4, without)[0].tolist() == [0, 0, 1, 0, 1]


def test_share_one_is_the_base_algorithm():
    scored = batch(TEN)
    assert torch.equal(shaped(1.0, scored), scored.batch.advantages)


def test_kept_tokens_have_the_gradient_of_the_base_loss_and_the_others_none():
    scored = batch(TEN)

    def gradient(advantages):
        new = scored.old.logprobs.clone().requires_grad_()
        policy_loss(new, scored.old.logprobs, advantages, token_mean(scored.batch.mask), Clip()).loss.backward()
        return new.grad

    found, base = gradient(shaped(0.2, scored)), gradient(scored.batch.advantages)
    kept = scored.old.entropy >= 0.9
    assert torch.equal(found, base * kept)  # divided by all ten tokens, not by two


@pytest.mark.parametrize("value", [0.0, 1.1, float("nan")])
def test_bad_values_are_refused(value):
    with pytest.raises(InvalidValue, match=r"^control\.share: got"):
        ForkingTokens(share=value)
