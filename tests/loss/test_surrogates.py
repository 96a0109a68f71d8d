import math

import pytest
import torch

from aepo.errors import InvalidValue
from aepo.loss.aggregates import AGGREGATES, fixed_length, sequence_mean_token_mean, token_mean
from aepo.loss.policy_loss import k3, policy_loss
from aepo.loss.surrogates import CISPO, DPPO, GSPO, SURROGATES, Bounds, Clip, GradientPreservingClip, Ratio
from aepo.loss.tokens import Tokens


def moved(ratio: torch.Tensor) -> Tokens:
    """Tokens of this ratio, [B, T], whose probability was 0.01."""
    old = torch.full_like(ratio, math.log(0.01))
    return Tokens.of(ratio.log() + old, old, torch.ones_like(ratio, dtype=torch.bool))


def at(surrogate, ratio, advantage):
    return surrogate(moved(torch.tensor([[ratio]])), torch.tensor([[advantage]])).item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "high", "expected"),
    [
        (1.25, 1.0, 0.28, 1.25),  # inside DAPO's higher bound
        (1.25, 1.0, 0.20, 1.20),  # beyond PPO's
        (0.75, -1.0, 0.28, -0.80),
        (0.75, 1.0, 0.20, 0.75),  # the min is pessimistic: no clip on this side
        (1.25, -1.0, 0.20, -1.25),
    ],
)
def test_clip_golden_values(ratio, advantage, high, expected):
    assert at(Clip(low=0.2, high=high), ratio, advantage) == pytest.approx(expected)


def test_dual_clip_bounds_the_loss_of_negative_advantages_only():
    assert at(Clip(dual=3.0), 5.0, -1.0) == pytest.approx(-3.0)
    assert at(Clip(dual=3.0), 2.0, -1.0) == pytest.approx(-2.0)
    assert at(Clip(dual=3.0), 5.0, 1.0) == pytest.approx(1.2)
    assert at(Clip(), 5.0, -1.0) == pytest.approx(-5.0)


def test_bounds_per_token_stand_in_for_the_clips_own():
    ratio, advantages = torch.tensor([[1.5, 1.5, 0.4]]), torch.tensor([[1.0, 1.0, -1.0]])
    bounds = Bounds(low=torch.tensor([[0.2, 0.2, 0.7]]), high=torch.tensor([[0.6, 0.3, 0.2]]))
    torch.testing.assert_close(Clip()(moved(ratio), advantages, bounds), torch.tensor([[1.5, 1.3, -0.4]]))
    assert Clip().clipped(moved(ratio), advantages, bounds).tolist() == [[False, True, False]]


def test_plain_ratio():
    assert at(Ratio(), 5.0, -1.5) == pytest.approx(-7.5)


# GradientPreservingClip keeps a gradient beyond its bounds, and test_gradient_preserving_clip.py tests what it says.
OTHERS = [cls() for cls in SURROGATES.values() if cls not in (Clip, GradientPreservingClip)]
ALL = [Clip(), Clip(low=0.1, high=0.3, dual=2.0), *OTHERS]
ALL += [GSPO(low=0.2, high=0.28), CISPO(low=0.2, high=0.2), DPPO(divergence="kl", low=0.02, high=0.02)]


@pytest.mark.parametrize("surrogate", ALL, ids=str)
def test_clipped_says_exactly_which_tokens_get_no_gradient(surrogate):
    torch.manual_seed(0)
    ratio = torch.linspace(0.05, 4.0, 80)[None].repeat(2, 1)
    scattered = torch.rand(2, 80) * 0.6 + 0.7  # rows in which some row ratios are within their bounds
    alone = torch.rand(40, 2) * 0.002 + 0.999
    for values, signs in ((ratio, 2), (scattered, 2), (alone, 40)):
        logprobs = (values.log() + math.log(0.2)).requires_grad_()
        tokens = Tokens.of(logprobs, torch.full_like(values, math.log(0.2)), torch.ones_like(values, dtype=torch.bool))
        advantages = torch.tensor([1.0, -1.0]).repeat(signs // 2)[:, None].expand_as(values)
        surrogate(tokens, advantages).sum().backward()
        assert torch.equal(logprobs.grad == 0, surrogate.clipped(tokens, advantages))


MASK = torch.tensor([[1.0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]])


def test_aggregates_by_hand():
    x = torch.tensor([[4.0, 9, 9, 9], [1, 1, 1, 1], [2, 4, 9, 9]])
    assert (token_mean(MASK) * x).sum().item() == pytest.approx(14 / 7)
    assert (sequence_mean_token_mean(MASK) * x).sum().item() == pytest.approx((4 + 1 + 3) / 3)
    assert (AGGREGATES["sequence-mean-token-sum"](MASK) * x).sum().item() == pytest.approx((4 + 4 + 6) / 3)
    assert (fixed_length(MASK) * x).sum().item() == pytest.approx(14 / 12)


@pytest.mark.parametrize("name", AGGREGATES)
def test_a_row_without_tokens_weighs_nothing(name):
    empty = torch.cat([MASK, torch.zeros(1, 4)])
    torch.testing.assert_close(AGGREGATES[name](empty)[:3], AGGREGATES[name](MASK))
    assert AGGREGATES[name](torch.zeros(2, 3)).sum() == 0


def gradient(parts, mask, logprobs, old, advantages, name):
    leaf = logprobs.clone().requires_grad_()
    weights = AGGREGATES[name](mask)
    for rows in parts:
        policy_loss(leaf[rows], old[rows], advantages[rows], weights[rows], Clip()).loss.backward()
    return leaf.grad


@pytest.mark.parametrize("name", AGGREGATES)
def test_the_gradient_does_not_depend_on_the_microbatch(name):
    torch.manual_seed(0)
    old = -torch.rand(3, 4)
    logprobs, advantages = old + 0.2 * torch.randn(3, 4), torch.randn(3, 1).expand(3, 4)
    whole = gradient([slice(0, 3)], MASK, logprobs, old, advantages, name)
    split = gradient([slice(0, 1), slice(1, 3)], MASK, logprobs, old, advantages, name)
    torch.testing.assert_close(whole, split)
    assert (whole[MASK == 0] == 0).all() and whole.abs().sum() > 0


def test_on_policy_gradient_is_reinforce():
    logprobs = torch.log(torch.tensor([[0.5, 0.25]])).requires_grad_()
    mask = torch.ones(1, 2)
    output = policy_loss(logprobs, logprobs.detach(), torch.full((1, 2), 2.0), token_mean(mask), Clip())
    output.loss.backward()
    # -A / tokens for each token: raising log pi of a positive lowers the loss.
    torch.testing.assert_close(logprobs.grad, torch.full((1, 2), -1.0))
    assert output.ratio.mean == 1 and output.clipped.mean == 0 and output.approximate_kl.mean == 0


def test_padding_never_reaches_the_gradient_even_as_nan():
    logprobs = torch.tensor([[-1.0, float("nan")]]).requires_grad_()
    mask = torch.tensor([[1.0, 0.0]])
    old = torch.tensor([[-1.0, float("inf")]])
    policy_loss(logprobs, old, torch.ones(1, 2), token_mean(mask), Clip()).loss.backward()
    assert logprobs.grad.tolist() == [[-1.0, 0.0]]


@pytest.mark.parametrize("surrogate", ALL, ids=str)
@pytest.mark.parametrize("distance", [-1000.0, -89.0, 89.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_no_distance_from_the_sampling_policy_gives_nan(surrogate, distance, advantage):
    """exp(89) is inf in float32, and inf * 0 is NaN, at an advantage of 0 too."""
    old = torch.tensor([[min(-1.0, -1.0 - distance)], [-1.0]])
    logprobs = (old + torch.tensor([[distance], [0.0]])).requires_grad_()
    output = policy_loss(logprobs, old, torch.tensor([[advantage], [1.0]]), torch.full((2, 1), 0.5), surrogate)
    output.loss.backward()
    assert output.loss.isfinite() and all(math.isfinite(m.mean) for m in (output.ratio, output.approximate_kl))
    assert logprobs.grad.isfinite().all() and logprobs.grad[1].item() == pytest.approx(-0.5)
    if isinstance(surrogate, Clip | Ratio):
        assert output.clipped.mean == 0.5 and logprobs.grad[0].item() == 0


def test_golden_the_log_ratio_is_cut_at_20_nats():
    """exp(20) = 485165195.4; a ratio within the limit is as it was."""
    for distance, expected in ((25.0, 485165195.4), (19.0, 178482301.0), (-25.0, 2.0611536e-9)):
        logprobs = torch.tensor([[distance]])
        output = policy_loss(logprobs, torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1), Ratio())
        assert -output.loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_nan_is_not_hidden_by_the_limit():
    logprobs = torch.tensor([[float("nan"), -1.0]])
    output = policy_loss(logprobs, torch.zeros(1, 2), torch.ones(1, 2), torch.full((1, 2), 0.5), Clip())
    assert output.loss.isnan()


@pytest.mark.parametrize("difference", [89.0, 1000.0])
def test_the_penalty_towards_a_reference_is_finite_however_far_it_is(difference):
    logprobs = torch.tensor([-difference], requires_grad=True)
    value = k3(logprobs, torch.zeros(1))
    value.backward()
    assert value.item() == pytest.approx(485165195.4 - 21, rel=1e-5) and logprobs.grad.item() == 0


def test_penalty_is_added_with_the_same_weights():
    mask = torch.tensor([[1.0, 1.0]])
    zero = torch.zeros(1, 2)
    penalty = torch.tensor([[1.0, 3.0]], requires_grad=True)
    output = policy_loss(zero, zero, zero, token_mean(mask), Clip(), penalty)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(2.0)
    assert penalty.grad.tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize("bad", [{"low": 0.0}, {"low": 1.5}, {"high": -0.1}, {"dual": 1.0}, {"high": float("nan")}])
def test_bad_bounds_are_refused_by_name(bad):
    with pytest.raises(InvalidValue, match=f"surrogate.{next(iter(bad))}: got"):
        Clip(**bad)
