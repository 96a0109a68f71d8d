"""The Triton kernels against the eager ones; run by tests/entropy/test_triton.py, in a process of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aepo.entropy import kernels
from aepo.entropy import triton as kernels_triton
from aepo.entropy.partial import Clamped, Nucleus
from aepo.entropy.statistics import TokenStatistics, token_statistics
from aepo.entropy.transform import LogitTransform

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = [torch.float32, torch.float64]
TRANSFORMS = [None, LogitTransform(0.3), LogitTransform(softcap=2.0), LogitTransform(0.7, softcap=5.0)]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(kernels_triton, "_FORWARD_BLOCK", 16)
    monkeypatch.setattr(kernels_triton, "_BACKWARD_BLOCK", 16)


def logits(rows: int, vocabulary: int, dtype=torch.float32, scale: float = 3.0) -> Tensor:
    g = torch.Generator().manual_seed(vocabulary)
    return (scale * torch.randn(rows, vocabulary, generator=g, dtype=torch.float64)).to(DEVICE, dtype)


def close(a: Tensor | None, b: Tensor | None) -> None:
    assert (a is None) == (b is None)
    if a is not None and b is not None:
        rough = a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=5e-6 if rough else 1e-13, atol=1e-6 if rough else 1e-14)


def reduced(kernel, z: Tensor, temperatures=(), kept=None, entropy: bool = True, transform=None):
    inverse = 1 / torch.tensor(temperatures, dtype=z.dtype, device=z.device)
    threshold = None if kept is None else kept.threshold(z, transform)
    return kernel.reduce(z, (), inverse, threshold, entropy, True, transform)


def differentiated(
    kernel, z: Tensor, temperatures=(), entropy: bool = True, kept: bool = True, transform=None
) -> Tensor:
    """z, overwritten."""
    g = torch.Generator().manual_seed(1)
    slopes = torch.randn(5 + len(temperatures), len(z), generator=g, dtype=torch.float64).to(z)
    inverse = 1 / torch.tensor(temperatures, dtype=z.dtype, device=z.device)
    part = (z.quantile(0.4, dim=-1), slopes[2:4]) if kept else (None, None)
    slope = slopes[1] if entropy else None
    peak = z.amax(-1) if transform is None else transform(z.amax(-1))
    kernel.differentiate(z, (), peak, inverse, slopes[0], slope, slopes[5:], *part, True, transform)
    return z


# Vocabularies of one block, several, and no multiple of one.
@pytest.mark.parametrize("vocabulary", [1, 2, 16, 17, 47, 48, 101])
@pytest.mark.parametrize("temperatures", [(), (0.7,), (0.7, 1.0, 1.9)])
@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
@pytest.mark.parametrize("dtype", FLOATS)
def test_sums_and_gradients_are_those_of_the_eager_kernel(small_blocks, vocabulary, temperatures, transform, dtype):
    z = logits(3, vocabulary, dtype)
    for kept in (None, Clamped(0.3), Nucleus(0.8)):
        ours, right = (
            reduced(kernel, z, temperatures, kept, transform=transform) for kernel in (kernels_triton, kernels)
        )
        if kept is not None:  # where nothing is left out they say so differently
            ours, right = ([*s[:3], s[3].clamp_min(-1e19), s[4]] for s in (ours, right))
        for a, b in zip(ours, right, strict=True):
            close(a, b)
        close(
            *(
                differentiated(k, z.clone(), temperatures, kept=kept is not None, transform=transform)
                for k in (kernels_triton, kernels)
            )
        )


def test_the_kernels_tanh(small_blocks):
    """Through the peak of a row of one: near 0, on both sides of the seam at 0.6, and where it saturates."""
    for dtype, rtol in ((torch.float64, 4e-15), (torch.float32, 4e-7)):
        x = torch.cat([torch.linspace(-0.61, 0.61, 999, dtype=torch.float64), torch.linspace(-40, 40, 999).double()])
        x = torch.cat([x, torch.tensor([0.0, 1e-30, -1e-30, 1e4, -1e4, -torch.inf], dtype=torch.float64)])
        x = x.to(DEVICE, dtype)
        peak = reduced(kernels_triton, x[:, None], transform=LogitTransform(softcap=1.0))[0]
        torch.testing.assert_close(peak.double(), x.double().tanh(), rtol=rtol, atol=0)


def test_a_cap_leaves_the_lanes_beyond_the_vocabulary_out(small_blocks):
    """All logits at the cap: lanes that count as -cap would add to the sums."""
    z = torch.full((2, 17), 1e3, device=DEVICE)
    _, totals, moment, _, _ = reduced(kernels_triton, z, (0.5,), transform=LogitTransform(softcap=0.1))
    assert totals.tolist() == [[17.0, 17.0], [17.0, 17.0]] and moment.tolist() == [0.0, 0.0]


def test_what_is_not_asked_for_is_left_out(small_blocks):
    z = logits(3, 40)
    _, totals, moment, below, kept = reduced(kernels_triton, z, entropy=False)
    assert totals.shape == (1, 3) and moment is below is kept is None
    for entropy, kept in ((False, False), (False, True), (True, False)):
        close(*(differentiated(k, z.clone(), (0.7,), entropy, kept) for k in (kernels_triton, kernels)))


@pytest.mark.parametrize("order", [-1, 1])
def test_a_peak_that_rises_from_block_to_block(small_blocks, order):
    """Sorted logits: the running peak rises in every block, or never after the first."""
    z = (order * logits(2, 100, torch.float64).sort(-1, descending=True).values).contiguous()
    for a, b in zip(*(reduced(k, z, (0.5,), Clamped(0.5)) for k in (kernels_triton, kernels)), strict=True):
        close(a, b)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_common_shift_of_all_logits(small_blocks, shift):
    """All very negative: what lies beyond the vocabulary must not count as a logit of 0."""
    z = logits(2, 37, torch.float64)
    near, far = (reduced(kernels_triton, z + by, (0.5,), Clamped(0.3)) for by in (0.0, shift))
    for i in (1, 2, 4):
        torch.testing.assert_close(far[i], near[i], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(far[0] - shift, near[0], rtol=0, atol=1e-10)


def test_logits_of_minus_infinity_add_nothing(small_blocks):
    """A whole block of them first, so that sums begin without a peak."""
    z = logits(2, 21, torch.float64)
    outside = z.new_full((2, 16), -torch.inf)
    for hidden in (torch.cat([outside, z], 1), torch.cat([z, outside], 1)):
        for kept in (Clamped(0.0), Clamped(0.6), Nucleus(0.8)):
            ours, right = (reduced(k, hidden, (0.5,), kept) for k in (kernels_triton, kernels))
            for i in (0, 1, 2, 4):
                close(ours[i], right[i])
                assert ours[i].isfinite().all()
        out = hidden.clone()
        rows = torch.ones(2, 2, dtype=z.dtype, device=z.device)
        kernels_triton.differentiate(
            out, (), z.amax(-1), z.new_tensor([2.0]), rows[0], rows[0], rows[:1], -rows[0], rows, True
        )
        assert (out[hidden == -torch.inf] == 0).all() and out.isfinite().all()


def test_ties_at_the_threshold_are_kept(small_blocks):
    z = torch.tensor([[1.0] * 20 + [2.0] + [0.0] * 20], device=DEVICE)
    for k in (kernels_triton, kernels):
        below, (total, _) = reduced(k, z, kept=Clamped(0.6))[3:]
        assert below.item() == 0.0
        assert total.item() == pytest.approx(1 + 20 * torch.e**-1)


def test_rows_beyond_2_to_the_31_logits():
    """Rows so far apart, in memory that is never touched, that the last one starts past 2^31."""
    stride = 2**30 + 64
    z = torch.empty(2 * stride + 5, device=DEVICE).as_strided((3, 5), (stride, 1))
    near = z.copy_(logits(3, 5)).clone(memory_format=torch.contiguous_format)
    close(reduced(kernels_triton, z)[1], reduced(kernels, near)[1])
    close(differentiated(kernels_triton, z, kept=False), differentiated(kernels, near, kept=False))


def test_float32_is_as_good_as_promised():
    """tests/entropy/test_statistics.py promises 5e-6 nats at this vocabulary; the hardware's exp has to keep it."""
    z = logits(3, 152_064, scale=1.0) * torch.tensor([[0.5], [2.0], [5.0]], device=DEVICE)
    peak, totals, moment, _, kept = reduced(kernels_triton, z, (0.8,), Clamped(0.3))
    right = reduced(kernels, z.double(), (0.8,), Clamped(0.3))
    entropy, exact = totals[0].double().log() - moment.double() / totals[0], right[1][0].log() - right[2] / right[1][0]
    assert torch.equal(peak.double(), right[0])
    torch.testing.assert_close(entropy, exact, rtol=0, atol=5e-6)
    torch.testing.assert_close(totals.double().log(), right[1].log(), rtol=0, atol=4e-7)
    torch.testing.assert_close(kept.double(), right[4], rtol=1e-6, atol=0)


# Through the public function.


def measured(head, labels, kept, transform, **options) -> tuple[TokenStatistics, tuple[Tensor, ...]]:
    hidden, weight, bias = head
    options |= {"bias": bias, "transform": transform, "temperatures": (0.8, 1.25), "kept": kept, "chunk": 4}
    s = token_statistics(hidden, weight, labels, **options)
    weights = torch.arange(1.0, 1 + len(labels), device=DEVICE)
    loss = (s.logprobs * weights.sin() + s.entropy * weights.cos() + s.kept_entropy * weights.sqrt()).sum()
    return s, torch.autograd.grad(loss + (s.tempered * weights).sum(), head)


@pytest.mark.parametrize("kept", [Clamped(0.3), Nucleus(0.8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [LogitTransform(), LogitTransform(1 / 8), LogitTransform(softcap=5.0)], ids=str)
def test_token_statistics_by_triton(monkeypatch, small_blocks, kept, transform, dtype):
    g = torch.Generator().manual_seed(0)
    head = [torch.randn(*s, generator=g).to(DEVICE, dtype).requires_grad_() for s in ((10, 8), (53, 8), (53,))]
    labels = torch.randint(53, (10,), generator=g).to(DEVICE)
    right, right_gradients = measured(head, labels, kept, transform, compile=False)
    called = []
    for name in ("reduce", "differentiate"):
        plain = getattr(kernels_triton, name)
        monkeypatch.setattr(kernels_triton, name, lambda *a, plain=plain, name=name: called.append(name) or plain(*a))
    functions = kernels_triton.reduce, kernels_triton.differentiate
    monkeypatch.setattr(kernels, "choose", lambda *a: kernels.Kernel(*functions, scratch=False))
    ours, gradients = measured(head, labels, kept, transform)
    assert called == ["reduce"] * 3 + ["differentiate"] * 3
    for name in vars(right):
        close(getattr(ours, name).float(), getattr(right, name).float())
    for a, b in zip(gradients, right_gradients, strict=True):
        close(a.float(), b.float())
