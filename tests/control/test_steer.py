import math
from dataclasses import replace

import pytest
import torch

from aepo.control.steer import STEER, entropy_change
from aepo.errors import InvalidValue
from tests import builders as b

# The distribution (0.9, 0.1): H = 0.325083; log 0.9 = -0.105361, log 0.1 = -2.302585. And (0.5, 0.5): log pi = -H.
LOGPROBS = torch.tensor([0.5, 0.9, 0.1]).log()[:, None]
ENTROPY = torch.tensor([[math.log(2)], [0.325083], [0.325083]])
# 0; 0.1 * 0.219722; 0.9 * 1.977502.
CHANGES = [0.0, 0.0219722, 1.7797518]


def three(**changes):
    rows = [b.sample(0.0, a, tokens=(1,)) for a in (1.0, 1.0, -1.0)]
    return b.scored(rows, logprobs=LOGPROBS, entropy=ENTROPY, **changes)


def shaped(control, scored):
    return control.shape(scored.batch.advantages, scored, {})


def test_golden_estimated_changes():
    scored = three()
    found = entropy_change(scored.batch.advantages, scored.old)[:, 0]
    assert found.tolist() == pytest.approx([0, CHANGES[1], CHANGES[2]], abs=1e-6)


def test_golden_linear_weights():
    # 1.2 - 0.4 * 0.0219722 / 1.7797518 = 1.195062
    assert shaped(STEER(), three())[:, 0].tolist() == pytest.approx([1.2, 1.195062, -0.8], abs=1e-6)


def test_golden_exponential_weights():
    # k = -log(0.8) / 1.7797518 = 0.125379; exp(-k * 0.0219722) = 0.997249
    found = shaped(STEER(weighting="exponential"), three())[:, 0]
    assert found.tolist() == pytest.approx([1.0, 0.997249, -0.8], abs=1e-6)


def test_the_estimate_is_the_logits_step_times_the_entropys_derivative():
    logits = torch.tensor([[[2.0, 1.0, 0.0, -1.0]]] * 4, requires_grad=True)
    stats = b.token_policy(logits, [[0], [1], [2], [3]])
    stats.entropy.sum().backward()
    slope = logits.grad[range(4), 0, range(4)][:, None]  # dH/dz of the sampled token
    old = replace(stats, logprobs=stats.logprobs.detach(), entropy=stats.entropy.detach())
    probability, advantage = old.logprobs.exp(), 0.7
    found = entropy_change(torch.full((4, 1), advantage), old)
    torch.testing.assert_close(found, -(advantage / probability) * (1 - probability) * slope)


@pytest.mark.parametrize(("weighting", "weight"), [("linear", 1.1), ("exponential", 0.8)])
def test_where_all_changes_are_equal_all_weights_are(weighting, weight):
    rows = [b.sample(0.0, a, tokens=(1, 1)) for a in (1.0, -1.0)]
    scored = b.scored(rows, logprobs=math.log(0.1), entropy=0.325083)
    found = shaped(STEER(weighting=weighting, low=0.8, high=1.4), scored)
    assert found.abs().flatten().tolist() == pytest.approx([weight] * 4)


def test_golden_a_batch_that_hardly_changes_is_hardly_reweighted():
    # |Omega| = 0.01 (1 - 0.5) (0 + log 2) = 0.0034657, below 0.02: 0.8 ** (0.0034657 / 0.02) = 0.96207
    scored = b.scored([b.sample(0.0, 0.01, tokens=(1,))], logprobs=math.log(0.5), entropy=2 * math.log(2))
    assert shaped(STEER(weighting="exponential"), scored).item() == pytest.approx(0.0096207, abs=1e-7)


@pytest.mark.parametrize("weighting", ["linear", "exponential"])
def test_no_range_is_the_base_algorithm_and_zero_advantages_stay_zero(weighting):
    scored = three()
    assert torch.equal(shaped(STEER(weighting=weighting, low=1.0, high=1.0), scored), scored.batch.advantages)
    zero = torch.zeros_like(scored.batch.advantages)
    assert (STEER(weighting=weighting).shape(zero, scored, {}) == 0).all()


def test_untrained_rows_do_not_set_the_range():
    scored = three()
    without = replace(scored, batch=replace(scored.batch, trained=torch.tensor([True, True, False])))
    assert shaped(STEER(), without)[:2, 0].tolist() == pytest.approx([1.2, 0.8])


@pytest.mark.parametrize(("field", "value"), [("low", 0.0), ("low", 1.1), ("high", 0.9), ("high", math.inf)])
def test_bad_values_are_refused(field, value):
    with pytest.raises(InvalidValue, match=rf"^control\.{field}: got"):
        STEER(**{field: value})
