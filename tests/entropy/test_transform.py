"""A scale and a soft cap of the logits in the tiled statistics, against plain autograd over whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aepo.entropy.partial import Clamped, MinP, Nucleus
from aepo.entropy.statistics import TokenStatistics, logits_statistics, token_statistics
from aepo.entropy.transform import LogitTransform
from aepo.errors import InvalidValue

TEMPERATURES = (0.6, 1.0, 1.7)
TRANSFORMS = [
    LogitTransform(scale=1 / 8),
    LogitTransform(scale=1 / 16),
    LogitTransform(scale=2.5),
    LogitTransform(softcap=30.0),
    LogitTransform(softcap=1.5),
    LogitTransform(scale=0.3, softcap=2.0),
]
KEPT = [None, Clamped(0.3), Nucleus(0.8)]


def inputs(dtype: torch.dtype, rows: int = 13, vocabulary: int = 47, biased: bool = True, size: float = 2.0):
    g = torch.Generator().manual_seed(3)
    shapes = ((rows, 8), (vocabulary, 8), (vocabulary,))[: 2 + biased]
    head = [(size * torch.randn(*s, generator=g, dtype=torch.float64)).to(dtype).requires_grad_() for s in shapes]
    return head, torch.randint(vocabulary, (rows,), generator=g)


def by_hand(head: list[Tensor], transform: LogitTransform) -> Tensor:
    """The logits, written as the models' own code writes them."""
    z = head[0] @ head[1].t() + (head[2] if len(head) > 2 else 0.0)
    z = z / (1 / transform.scale)
    return z if transform.softcap is None else torch.tanh(z / transform.softcap) * transform.softcap


def loss_of(s: TokenStatistics) -> Tensor:
    weights = torch.arange(1.0, 1 + len(s.logprobs), dtype=s.logprobs.dtype)
    loss = (s.logprobs * weights.sin() + s.entropy * weights.cos()).sum() + (s.tempered * weights.sin()).sum()
    return loss if s.kept_entropy is None else loss + (s.kept_entropy * weights.sqrt()).sum()


def compared(head, labels, transform, kept, rtol: float, atol: float, **options) -> None:
    ours = token_statistics(
        *head[:2],
        labels,
        bias=head[2] if len(head) > 2 else None,
        transform=transform,
        temperatures=TEMPERATURES,
        kept=kept,
        chunk=5,
        **options,
    )
    right = logits_statistics(by_hand(head, transform), labels, temperatures=TEMPERATURES, kept=kept)
    for name in vars(right):
        mine, wanted = getattr(ours, name), getattr(right, name)
        assert (mine is None) == (wanted is None)
        if mine is not None:
            torch.testing.assert_close(mine, wanted, rtol=rtol, atol=atol)
    for mine, wanted in zip(*(torch.autograd.grad(loss_of(s), head) for s in (ours, right)), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=rtol, atol=atol * wanted.abs().max().clamp_min(1).item())


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("kept", KEPT, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_statistics_and_gradients_are_autograds(transform, kept, biased):
    compared(*inputs(torch.float64, biased=biased), transform, kept, 1e-11, 1e-12, compile=False)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_statistics_and_gradients_are_autograds_in_float32(transform):
    compared(*inputs(torch.float32), transform, None, 2e-5, 4e-6, compile=False)


@pytest.mark.parametrize("transform", [TRANSFORMS[0], TRANSFORMS[5]], ids=str)
@pytest.mark.parametrize("kept", [None, Clamped(0.3)], ids=str)
def test_compiled_code_gives_the_same(transform, kept):
    torch.compiler.reset()
    compared(*inputs(torch.float64), transform, kept, 1e-11, 1e-12, compile=True)


@pytest.mark.parametrize("transform", TRANSFORMS[3:], ids=str)
def test_each_statistic_alone_has_its_gradient(transform):
    """Each of the gradient's terms meets the slope of the cap by itself."""
    head, labels = inputs(torch.float64)

    def every(*operands: Tensor) -> tuple[Tensor, ...]:
        options = {"bias": operands[2], "transform": transform, "temperatures": (0.6,), "kept": Clamped(0.4)}
        s = token_statistics(*operands[:2], labels[:3], **options)
        return s.logprobs, s.entropy, s.tempered, s.kept_entropy

    few = [x.detach()[:3].requires_grad_() if x is head[0] else x for x in head]
    assert torch.autograd.gradcheck(every, few)


def test_the_gradient_vanishes_where_the_cap_is_reached():
    """One logit of 40 caps: its slope is 1 - tanh^2 = 0 to the last bit, and nothing is NaN."""
    weight = torch.tensor([[40.0], [0.5], [-40.0]], requires_grad=True)
    hidden = torch.ones(1, 1, requires_grad=True)
    s = token_statistics(hidden, weight, torch.tensor([0]), transform=LogitTransform(softcap=1.0))
    (s.logprobs + s.entropy).sum().backward()
    assert weight.grad[0].item() == 0.0 and weight.grad[2].item() == 0.0 and weight.grad[1].item() != 0.0
    z = torch.tensor([1.0, math.tanh(0.5), -1.0]).log_softmax(0)
    assert s.logprobs.item() == pytest.approx(z[0].item(), abs=1e-6)


def test_no_probability_is_above_one():
    """A cap near which the largest logit lies: the label's own tanh must not round above the peak."""
    g = torch.Generator().manual_seed(0)
    hidden, weight = torch.randn(400, 16, generator=g), 8 * torch.randn(31, 16, generator=g)
    cap = LogitTransform(softcap=50.0)
    labels = cap(hidden @ weight.t()).argmax(-1)
    assert (token_statistics(hidden, weight, labels, transform=cap, temperatures=(0.05,)).logprobs <= 0).all()
    assert (token_statistics(hidden, weight, labels, transform=cap, temperatures=(0.05,)).tempered <= 0).all()


def test_a_scale_is_the_factor_of_the_weights():
    """Exact for a power of two: Granite's logits_scaling of 8."""
    (hidden, weight), labels = inputs(torch.float32, biased=False)
    scaled = token_statistics(hidden, weight, labels, transform=LogitTransform(1 / 8), temperatures=(0.7,))
    folded = token_statistics(hidden, weight / 8, labels, temperatures=(0.7,))
    for name in ("logprobs", "entropy", "tempered"):
        assert torch.equal(getattr(scaled, name), getattr(folded, name))


def test_without_a_transform_the_kernels_are_called_as_before():
    """The plain transform is None inside: no factor, no copy, no other rounding."""
    (hidden, weight, bias), labels = inputs(torch.float32)
    plain = token_statistics(hidden, weight, labels, bias=bias, temperatures=(0.7,))
    named = token_statistics(hidden, weight, labels, bias=bias, temperatures=(0.7,), transform=LogitTransform(1.0))
    assert LogitTransform().plain and not any(transform.plain for transform in TRANSFORMS)
    assert all(torch.equal(getattr(plain, n), getattr(named, n)) for n in ("logprobs", "entropy", "tempered"))


def test_real_sizes_in_float32():
    """The promise of docs/entropy.md with Gemma 2's cap, and against float64."""
    g = torch.Generator().manual_seed(1)
    hidden, weight = torch.randn(6, 16, generator=g), 2 * torch.randn(32_000, 16, generator=g)
    labels = torch.randint(32_000, (6,), generator=g)
    for transform in (LogitTransform(softcap=30.0), LogitTransform(scale=1 / 16)):
        ours = token_statistics(hidden, weight, labels, transform=transform, temperatures=(0.8,))
        z = by_hand([hidden.double(), weight.double()], transform)
        right = logits_statistics(z, labels, temperatures=(0.8,))
        torch.testing.assert_close(ours.entropy.double(), right.entropy, rtol=0, atol=4e-6)
        torch.testing.assert_close(ours.logprobs.double(), right.logprobs, rtol=0, atol=8e-6)


BAD = [{"scale": 0.0}, {"scale": -1.0}, {"scale": math.inf}, {"softcap": 0.0}, {"softcap": -3}]


@pytest.mark.parametrize("bad", BAD)
def test_impossible_values_are_refused(bad):
    with pytest.raises(InvalidValue, match=f"^{next(iter(bad))}: got"):
        LogitTransform(**bad)


@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(0.25), LogitTransform(2.0, 5.0)], ids=str)
def test_min_p_keeps_the_tokens_that_are_likely_enough_after_the_transform(transform):
    torch.manual_seed(0)
    hidden, weight = torch.randn(7, 16), 2 * torch.randn(40, 16)
    labels = torch.randint(40, (7,))
    probs = transform(hidden @ weight.T).double().softmax(-1)
    kept = probs >= 0.1 * probs.amax(-1, keepdim=True)
    inside = torch.where(kept, probs, 0.0)
    inside = inside / inside.sum(-1, keepdim=True)
    found = token_statistics(hidden, weight, labels, transform=transform, kept=MinP(0.1))
    torch.testing.assert_close(found.kept_entropy, -torch.special.xlogy(inside, inside).sum(-1).float())
    chosen = inside.gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found.kept_logprobs.exp(), chosen.float(), atol=1e-6, rtol=1e-5)
