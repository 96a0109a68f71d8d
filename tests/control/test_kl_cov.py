import math
from dataclasses import replace

import pytest
import torch

from aepo.control.kl_cov import KLCov
from aepo.errors import InvalidValue
from aepo.loss.aggregates import token_mean
from aepo.loss.policy_loss import policy_loss
from aepo.loss.surrogates import Ratio
from aepo.types import BatchStatistics
from tests import builders as b

OLD = torch.tensor([0.9, 0.9, 0.1, 0.1]).log()[:, None]
MOVE = torch.tensor([[0.1], [0.3], [-0.3], [-0.2]])


def four():
    """Covariances log(9)/2 times 1, -1, -1, 1: the first and the last are the largest."""
    return b.scored([b.sample(0.0, a, tokens=(1,)) for a in (1.0, -1.0, 1.0, -1.0)], logprobs=OLD)


def penalty(control, scored, logprobs):
    return control.penalty(b.marked(control, scored), BatchStatistics(logprobs, scored.old.entropy), {})


@pytest.mark.parametrize("selection", ["batch", "microbatch"])
def test_golden_penalty_is_the_absolute_log_ratio_of_the_top_tokens(selection):
    found = penalty(KLCov(share=0.5, beta=2.0, selection=selection), four(), OLD + MOVE)
    assert found[:, 0].tolist() == pytest.approx([0.2, 0, 0, 0.4])


def test_golden_loss_and_gradient():
    # mean of -r A + |log r|: at the first (-1.1052 + 0.1), -r A at the middle two, (0.8187 + 0.2) at the last.
    scored, new = four(), (OLD + MOVE).requires_grad_()
    loss = policy_loss(
        new, OLD, scored.batch.advantages, token_mean(scored.batch.mask), Ratio(),
        penalty(KLCov(share=0.5), scored, new),
    ).loss  # fmt: skip
    loss.backward()
    r = [math.exp(move) for move in (0.1, 0.3, -0.3, -0.2)]
    assert loss.item() == pytest.approx((-r[0] + 0.1 + r[1] - r[2] + r[3] + 0.2) / 4)
    assert new.grad[:, 0].tolist() == pytest.approx([(1 - r[0]) / 4, r[1] / 4, -r[2] / 4, (r[3] - 1) / 4])


@pytest.mark.parametrize("selection", ["batch", "microbatch"])
def test_at_ratio_one_it_adds_nothing_and_has_no_gradient(selection):
    new = OLD.clone().requires_grad_()
    found = penalty(KLCov(share=1.0, selection=selection), four(), new)
    found.sum().backward()
    assert (found == 0).all() and (new.grad == 0).all()


@pytest.mark.parametrize(("size", "slope"), [(1e-7, 0.0), (5e-6, 0.0), (1e-4, 1.0)])
def test_the_sign_of_rounding_noise_is_not_trained_on(size, slope):
    noise = size * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None]
    new = (OLD + noise).requires_grad_()
    penalty(KLCov(share=1.0), four(), new).sum().backward()
    assert new.grad.abs().max() == slope and (new.grad.sign() == slope * noise.sign()).all()


def test_it_says_that_it_acts_from_the_second_update_on():
    assert KLCov().acts_off_policy


@pytest.mark.parametrize(("share", "count"), [(0.07, 7), (0.079, 7), (1e-9, 1), (1.0, 100)])
def test_golden_count_is_the_floor_of_the_share_and_at_least_one(share, count):
    rows = [b.sample(1.0, 1.0, tokens=(1,) * 50), b.sample(0.0, -1.0, tokens=(1,) * 50)]
    scored = b.scored(rows, logprobs=-torch.rand(2, 50, generator=torch.Generator().manual_seed(0)))
    assert (penalty(KLCov(share=share), scored, scored.old.logprobs - 0.1) > 0).sum() == count


def test_padding_and_untrained_rows_are_neither_counted_nor_chosen():
    long, short = b.sample(1.0, 1.0, tokens=(1,) * 4), b.sample(0.0, -1.0, tokens=(1,) * 2)
    out = replace(b.sample(1.0, 1.0, tokens=(1,) * 4), trained=False)
    scored = b.scored([long, short, out], logprobs=torch.tensor([[-0.1], [-4.1], [-0.1]]))
    found = penalty(KLCov(share=1.0), scored, scored.old.logprobs - 0.1 * scored.batch.mask)
    assert torch.equal(found > 0, scored.trained.bool())


def test_microbatch_chooses_within_the_microbatch_and_batch_does_not():
    chosen = {}
    for selection in ("batch", "microbatch"):
        control, scored = KLCov(share=0.25, selection=selection), four()
        # The advantage makes the first token's covariance the largest of the batch.
        scored = replace(scored, batch=replace(scored.batch, advantages=torch.tensor([[2.0], [-1.0], [1.0], [-1.0]])))
        part = b.marked(control, scored).select(torch.tensor([1, 3]))
        new = replace(part.old, logprobs=part.old.logprobs + 0.1)
        chosen[selection] = (control.penalty(part, new, {}) > 0).sum().item()
    assert chosen == {"batch": 0, "microbatch": 1}


@pytest.mark.parametrize(("field", "value"), [("share", 0.0), ("share", 1.1), ("beta", 0.0), ("beta", float("nan"))])
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        KLCov(**{field: value})
