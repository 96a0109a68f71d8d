"""Token statistics against float64 references, golden numbers, and counts of what was computed."""

from __future__ import annotations

import gc
import logging
import math
import os
import shutil
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from aepo.entropy import kernels
from aepo.entropy import tiles as fused
from aepo.entropy.statistics import TokenStatistics, logits_statistics, sampled_entropy, token_statistics
from aepo.types import Metric

LOGITS = (2.0, 1.0, 0.0, -1.0)
PROBABILITIES = (0.643914, 0.236883, 0.087144, 0.032059)
ENTROPY = 0.947537
ENTROPY_GRADIENT = (-0.326688, 0.116701, 0.130076, 0.079911)  # -pi (log pi + H)


def reference(logits: Tensor, labels: Tensor, temperatures: tuple[float, ...] = ()) -> TokenStatistics:
    """The definitions, written down once more, in float64."""
    z = logits.double()
    index = labels.unsqueeze(-1)

    def chosen(t: float) -> Tensor:
        return torch.log_softmax(z / t, -1).gather(-1, index).squeeze(-1)

    log_p = torch.log_softmax(z, -1)
    tempered = torch.stack([chosen(t) for t in temperatures]) if temperatures else z.new_empty(0, len(z))
    return TokenStatistics(chosen(1.0), -(log_p.exp() * log_p).sum(-1), tempered, torch.full((len(z),), math.nan))


def from_logits(logits: Tensor, labels: Tensor, **options) -> TokenStatistics:
    """`token_statistics` of exactly these logits: they are the head, and the hidden states unit vectors."""
    rows = torch.eye(len(logits), dtype=logits.dtype)
    return token_statistics(rows, logits.t(), labels, **options)


def operands(n: int, d: int, v: int, dtype=torch.float64, bias: bool = True, seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, shift = (torch.randn(*s, generator=g, dtype=dtype) for s in ((n, d), (v, d), (v,)))
    labels = torch.randint(v, (n,), generator=g)
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), *([shift.requires_grad_()] if bias else [])]
    return leaves, labels


def call(leaves, labels, **options) -> TokenStatistics:
    hidden, weight, *bias = leaves
    return token_statistics(hidden, weight, labels, bias=bias[0] if bias else None, **options)


def weighted(s: TokenStatistics, rows: Tensor | slice = slice(None)) -> Tensor:
    """A loss in which every statistic of every row has a weight of its own."""

    def part(x: Tensor, f) -> Tensor:
        return (x * f(torch.arange(1, x.numel() + 1, dtype=x.dtype).view_as(x)))[..., rows].sum()

    return part(s.logprobs, torch.sin) + part(s.entropy, torch.cos) + part(s.tempered, torch.sqrt)


def measured(s: TokenStatistics) -> tuple[Tensor, ...]:
    """All but the kept entropy, which tests/entropy/test_partial.py is about."""
    return s.logprobs, s.entropy, s.tempered


def gradients(leaves, loss: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, leaves)


def close(a, b, atol: float) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=0)


@pytest.fixture
def uncompiled(monkeypatch):
    """No compiled code yet, and none kept afterwards."""
    functions = kernels.reduce, kernels.differentiate
    fresh = kernels.Kernel(*(kernels._Fallible(function, kernels._compile) for function in functions), scratch=False)
    monkeypatch.setattr(kernels, "_COMPILED", fresh)
    return fresh


# Accuracy.


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize(("vocabulary", "atol"), [(32_000, 2e-6), (152_064, 5e-6)])
def test_float32_is_as_good_as_promised(vocabulary, atol, compile):
    g = torch.Generator().manual_seed(vocabulary)
    scales = torch.tensor([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0]).repeat_interleave(2).unsqueeze(1)
    logits = torch.randn(16, vocabulary, generator=g) * scales
    labels = torch.randint(vocabulary, (16,), generator=g)
    labels[1::4] = logits[1::4].argmax(1)
    ours = from_logits(logits, labels, temperatures=(0.8, 1.25), compile=compile)
    right = reference(logits, labels, (0.8, 1.25))
    assert ours.logprobs.dtype == ours.entropy.dtype == ours.tempered.dtype == torch.float32
    close(ours.entropy.double(), right.entropy, atol)
    # Log-probs are better than that: the sums hardly count beside the one rounding of the result.
    rounded_once = {"atol": 4e-7, "rtol": 2**-24}
    torch.testing.assert_close(ours.logprobs.double(), right.logprobs, **rounded_once)
    torch.testing.assert_close(ours.tempered.double(), right.tempered, **rounded_once)
    near = right.logprobs > -16  # one rounding of a number beyond takes half of 2e-6 and more
    close(ours.logprobs.double()[near], right.logprobs[near], atol)

    lse = logits.logsumexp(-1, keepdim=True)
    naive = lse.squeeze(1) - ((logits - lse).exp() * logits).sum(-1)
    assert (naive - right.entropy).abs().max() > atol, "the plain formula would do: then use it"


def test_float32_gradients_against_float64():
    leaves, labels = operands(12, 8, 5_003, dtype=torch.float32)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    mine = gradients(leaves, weighted(call(leaves, labels, temperatures=(0.8, 1.25), chunk=5)))
    right = reference(wide[0] @ wide[1].t() + wide[2], labels, (0.8, 1.25))
    for a, b in zip(mine, gradients(wide, weighted(right)), strict=True):
        close(a.double(), b, 2e-5 * b.abs().max().item())


def test_bfloat16_inputs_have_float32_statistics():
    leaves, labels = operands(9, 16, 1_001, dtype=torch.bfloat16)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    ours = call(leaves, labels, temperatures=(0.8,), chunk=4)
    right = reference(wide[0] @ wide[1].t() + wide[2], labels, (0.8,))
    assert ours.entropy.dtype == torch.float32
    close(ours.entropy.double(), right.entropy, 1e-5)
    close(ours.logprobs.double(), right.logprobs, 1e-5)
    for a, b in zip(gradients(leaves, weighted(ours)), gradients(wide, weighted(right)), strict=True):
        assert a.dtype == torch.bfloat16
        close(a.double(), b, 0.005 * b.abs().max().item())


def test_the_head_s_gradient_is_not_accumulated_in_16_bits():
    """512 equal tiles: a bfloat16 sum of them stops growing at 256 times its first term."""
    hidden, weight = torch.ones(512, 1, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16)
    weight.requires_grad_()
    token_statistics(hidden, weight, torch.zeros(512, dtype=torch.long), chunk=1).logprobs.sum().backward()
    assert weight.grad.flatten().tolist() == [256.0, -256.0]


def test_autocast_does_not_reach_the_products():
    leaves, labels = operands(6, 8, 50, dtype=torch.float32)
    plain = call(leaves, labels)
    expected = gradients(leaves, weighted(plain))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = call(leaves, labels)
        assert torch.equal(cast.entropy, plain.entropy)
        for a, b in zip(gradients(leaves, weighted(cast)), expected, strict=True):
            assert torch.equal(a, b)


# Known values.


def test_uniform_has_entropy_log_v_and_no_gradient():
    hidden = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(7, 4, dtype=torch.float64)
    s = token_statistics(hidden, weight, torch.tensor([0, 3, 6]), temperatures=(0.5, 2.0))
    close(s.entropy, torch.full((3,), math.log(7), dtype=torch.float64), 1e-12)
    close(s.logprobs, torch.full((3,), -math.log(7), dtype=torch.float64), 1e-12)
    close(s.tempered, torch.full((2, 3), -math.log(7), dtype=torch.float64), 1e-12)
    (slope,) = torch.autograd.grad(s.entropy.sum(), hidden)
    close(slope, torch.zeros_like(slope), 1e-12)


def test_golden_row():
    logits = torch.tensor([LOGITS], dtype=torch.float64, requires_grad=True)
    s = from_logits(logits, torch.tensor([1]), temperatures=(2.0,))
    assert s.entropy.item() == pytest.approx(ENTROPY, abs=5e-7)
    assert s.logprobs.exp().item() == pytest.approx(PROBABILITIES[1], abs=5e-7)
    # softmax(1, .5, 0, -.5)[1]
    assert s.tempered.exp().item() == pytest.approx(0.276004, abs=5e-7)
    (by_entropy,) = torch.autograd.grad(s.entropy.sum(), logits, retain_graph=True)
    assert by_entropy[0].tolist() == pytest.approx(ENTROPY_GRADIENT, abs=5e-7)
    (by_logprob,) = torch.autograd.grad(s.logprobs.sum(), logits, retain_graph=True)
    onehot = (0, 1, 0, 0)
    assert by_logprob[0].tolist() == pytest.approx(
        [o - p for o, p in zip(onehot, PROBABILITIES, strict=True)], abs=5e-7
    )
    (by_tempered,) = torch.autograd.grad(s.tempered.sum(), logits)
    tempered = (0.455054, 0.276004, 0.167405, 0.101536)
    assert by_tempered[0].tolist() == pytest.approx(
        [(o - p) / 2 for o, p in zip(onehot, tempered, strict=True)], abs=5e-7
    )


def test_plain_reference_agrees_and_keeps_leading_shapes():
    (hidden, weight, bias), labels = operands(6, 3, 11)
    logits = hidden @ weight.t() + bias
    fused = token_statistics(hidden, weight, labels, bias=bias, temperatures=(0.7, 1.0))
    plain = logits_statistics(logits.view(2, 3, 11), labels.view(2, 3), temperatures=(0.7, 1.0))
    assert plain.logprobs.shape == plain.entropy.shape == (2, 3)
    assert plain.tempered.shape == (2, 2, 3)
    close(plain.logprobs.flatten(), fused.logprobs, 1e-12)
    close(plain.entropy.flatten(), fused.entropy, 1e-12)
    close(plain.tempered.flatten(1), fused.tempered, 1e-12)
    close(fused.tempered[1], fused.logprobs, 1e-12)


def test_plain_reference_survives_masked_logits():
    logits = torch.tensor([[2.0, -math.inf, 1.0, 0.0, -1.0]], requires_grad=True)
    s = logits_statistics(logits, torch.tensor([2]), temperatures=(2.0,))
    assert s.entropy.item() == pytest.approx(ENTROPY, abs=1e-6)
    (slope,) = torch.autograd.grad(weighted(s), logits)
    assert slope.isfinite().all() and slope[0, 1] == 0


# Gradients.


@pytest.mark.parametrize("output", ["logprobs", "entropy", "tempered", "all"])
def test_gradcheck(output):
    leaves, labels = operands(5, 3, 7)

    def f(hidden, weight, bias):
        s = token_statistics(hidden, weight, labels, bias=bias, temperatures=(0.6, 1.0, 1.7), chunk=2, compile=False)
        return measured(s) if output == "all" else getattr(s, output)

    assert torch.autograd.gradcheck(f, leaves)


@pytest.mark.parametrize("wanted", range(3))
def test_only_the_gradients_asked_for(wanted):
    leaves, labels = operands(5, 3, 7)
    expected = gradients(leaves, weighted(call(leaves, labels, temperatures=(0.5,))))[wanted]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i == wanted)
    with Watch() as watch:
        weighted(call(leaves, labels, temperatures=(0.5,))).backward()
    close(leaves[wanted].grad, expected, 1e-12)
    assert all(leaf.grad is None for i, leaf in enumerate(leaves) if i != wanted)
    assert watch.products == 2 + (wanted < 2)  # logits twice, and no product for a frozen operand


def test_without_bias():
    leaves, labels = operands(5, 3, 7, bias=False)
    ours = gradients(leaves, weighted(call(leaves, labels, temperatures=(0.5,), chunk=3)))
    plain = logits_statistics(leaves[0] @ leaves[1].t(), labels, temperatures=(0.5,))
    for a, b in zip(ours, gradients(leaves, weighted(plain)), strict=True):
        close(a, b, 1e-12)


def test_no_second_derivative():
    leaves, labels = operands(2, 3, 5)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(call(leaves, labels).entropy.sum(), leaves[0], create_graph=True)


# Invariances.


@pytest.mark.parametrize("chunk", [1, 3, 7, 10, 64, None])
def test_chunk_changes_nothing(chunk):
    leaves, labels = operands(10, 4, 23)
    whole = call(leaves, labels, temperatures=(0.8, 1.2), chunk=10)
    parts = call(leaves, labels, temperatures=(0.8, 1.2), chunk=chunk)
    for a, b in zip(measured(parts), measured(whole), strict=True):
        close(a, b, 1e-13)
    for a, b in zip(gradients(leaves, weighted(parts)), gradients(leaves, weighted(whole)), strict=True):
        close(a, b, 1e-12)


def test_microbatches_add_up():
    leaves, labels = operands(10, 4, 23)
    hidden, weight, bias = leaves
    whole = gradients(leaves, call(leaves, labels).entropy.sum() + call(leaves, labels).logprobs.sum())
    total = [torch.zeros_like(x) for x in leaves]
    for rows in (slice(0, 3), slice(3, 4), slice(4, 10)):
        s = token_statistics(hidden[rows], weight, labels[rows], bias=bias)
        for t, g in zip(total, gradients(leaves, s.entropy.sum() + s.logprobs.sum()), strict=True):
            t += g
    for a, b in zip(total, whole, strict=True):
        close(a, b, 1e-12)


def test_order_of_rows_changes_nothing():
    leaves, labels = operands(10, 4, 23)
    hidden, weight, bias = leaves
    order = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    whole = call(leaves, labels, temperatures=(0.8,), chunk=4)
    mixed = token_statistics(hidden[order], weight, labels[order], bias=bias, temperatures=(0.8,), chunk=4)
    for a, b in zip(measured(mixed), measured(whole), strict=True):
        close(a, b[..., order], 1e-13)
    inverse = order.argsort()
    back = TokenStatistics(
        mixed.logprobs[inverse], mixed.entropy[inverse], mixed.tempered[:, inverse], mixed.kept_entropy
    )
    for a, b in zip(gradients(leaves, weighted(back)), gradients(leaves, weighted(whole)), strict=True):
        close(a, b, 1e-12)


def test_rows_without_a_gradient_are_left_out_even_when_they_hold_nan():
    leaves, labels = operands(10, 4, 23)
    hidden, weight, bias = leaves
    kept = torch.tensor([0, 2, 3, 7])
    padded = torch.full((10, 4), math.nan, dtype=torch.float64)
    padded[kept] = hidden.detach()[kept]
    padded.requires_grad_()
    s = token_statistics(padded, weight, labels, bias=bias, temperatures=(0.8,), chunk=3)
    with Watch() as watch:
        got = gradients((padded, weight, bias), weighted(s, kept))
    assert watch.product_rows == 3 * len(kept)  # logits, hidden's and weight's gradient
    want = gradients(leaves, weighted(call(leaves, labels, temperatures=(0.8,)), kept))
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)
    assert not got[0][[1, 4, 5, 6, 8, 9]].any()


# What is computed, and what is kept.


class Watch(TorchDispatchMode):
    """Counts tensors, matrix products and exponentials."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.products = self.product_rows = self.exponentials = 0
        self.blocks = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "addmm_"):
            left = args[0] if name == "mm" else args[1]
            self.products += 1
            self.product_rows += left.shape[1] if name == "addmm_" else left.shape[0]
        self.exponentials += name in ("exp", "exp_")
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
                block = tensor.untyped_storage()
                self.blocks[block.data_ptr()] = block  # held, so that no address comes twice
        return out


def test_logits_of_all_rows_never_exist():
    (hidden, weight, bias), labels = operands(64, 4, 301)
    with Watch() as fused:
        s = token_statistics(hidden, weight, labels, bias=bias, temperatures=(0.8, 1.2), chunk=8)
        weighted(s).backward()
    with Watch() as plain:
        weighted(logits_statistics(hidden @ weight.t() + bias, labels)).backward()
    assert fused.largest == 8 * 301
    tiles = [block for block in fused.blocks.values() if block.nbytes() >= 8 * 301 * 8]
    assert len(tiles) == 2 + 3  # logits and room to work in, forward and back, whatever the number of tiles
    assert plain.largest == 64 * 301


@pytest.mark.parametrize("vocabulary", [2, 105, 3_000, 32_000, 152_064, 10_000_000])
def test_default_chunk_bounds_the_tile(vocabulary):
    chunk = fused.default_chunk(torch.device("cpu"), vocabulary)
    assert chunk >= 64
    assert chunk * vocabulary <= 2**23 or chunk == 64
    assert chunk >= 256 or vocabulary > 2**15


@pytest.mark.parametrize(("rows", "chunk"), [(10, 3), (10, 10), (10, 11), (1, 5), (257, 256), (0, 4)])
def test_tiles_cover_every_row_once_and_are_even(rows, chunk):
    tiles = fused.Plan((1.0,), True, None, chunk, kernels._EAGER).tiles(rows)
    assert [i for t in tiles for i in range(t.start, t.stop)] == list(range(rows))
    sizes = {t.stop - t.start for t in tiles}
    assert not sizes or (max(sizes) <= chunk and max(sizes) - min(sizes) <= 1)


def test_what_is_not_asked_for_costs_nothing():
    leaves, labels = operands(6, 3, 11)
    for temperatures, entropy, forward in (((), False, 1), ((), True, 1), ((0.8, 1.2), True, 3)):
        with Watch() as watch:
            s = call(leaves, labels, temperatures=temperatures, entropy=entropy)
        assert watch.exponentials == forward
        with Watch() as watch:
            s.logprobs.sum().backward()  # the others were measured, not differentiated
        assert watch.exponentials == 1
    s = call(leaves, labels, temperatures=(0.8, 1.2))
    with Watch() as watch:
        (s.entropy.sum() + s.tempered[1].sum()).backward()
    assert watch.exponentials == 2


def test_entropy_not_asked_for_is_none_and_the_rest_is_the_same():
    leaves, labels = operands(6, 3, 11)
    with_entropy, without = call(leaves, labels), call(leaves, labels, entropy=False)
    assert without.entropy is None
    assert without.kept_entropy is None
    assert torch.equal(with_entropy.logprobs, without.logprobs)
    assert without.tempered.shape == (0, 6)


@pytest.mark.parametrize("grad", [True, False])
def test_no_grad_keeps_nothing(grad):
    hidden, weight = torch.randn(6, 3), torch.randn(11, 3, requires_grad=True)
    alive = weakref.ref(hidden)
    with torch.set_grad_enabled(grad):
        s = token_statistics(hidden, weight, torch.zeros(6, dtype=torch.long), temperatures=(0.8,))
    del hidden
    gc.collect()
    assert (alive() is not None) == grad == s.entropy.requires_grad


# Hard inputs.


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_a_common_shift_of_all_logits(shift):
    base = torch.tensor([LOGITS, (0.0, 0.0, 0.0, 0.0), (-50.0, 0.0, 30.0, 2.0)])
    labels = torch.tensor([1, 2, 0])
    near = from_logits(base, labels, temperatures=(0.8,))
    far = from_logits((base + shift).requires_grad_(), labels, temperatures=(0.8,))
    for a, b in zip(measured(far), measured(near), strict=True):
        close(a, b, 1e-6)


def test_peaked_rows_keep_small_numbers():
    logits = torch.zeros(1, 100, requires_grad=True)
    with torch.no_grad():
        logits[0, 0] = 60.0
    s = from_logits(logits, torch.tensor([0]))
    right = reference(logits.detach(), torch.tensor([0]))
    assert s.entropy.item() == pytest.approx(right.entropy.item(), rel=1e-5)
    assert 0 < s.entropy.item() < 1e-20
    s.entropy.sum().backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_a_bias_of_minus_infinity_takes_tokens_out(compile):
    (hidden, weight, bias), _ = operands(6, 3, 12)
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    small = (hidden, weight[:8], bias[:8])
    masked = bias.detach().clone()
    masked[8:] = -math.inf
    masked.requires_grad_()
    less = call(small, labels, temperatures=(0.7,))
    same = call((hidden, weight, masked), labels, temperatures=(0.7,), compile=compile)
    for a, b in zip(measured(same), measured(less), strict=True):
        close(a, b, 1e-12)
    got = gradients((hidden, weight, masked), weighted(same))
    want = gradients((hidden, weight, bias), weighted(less))
    for a, b in zip(got, want, strict=True):
        close(a, b, 1e-12)
    removed = call((hidden, weight, masked), labels + 6, temperatures=(0.7,), compile=compile)
    assert removed.logprobs[2:].tolist() == removed.tempered[0, 2:].tolist() == [-math.inf] * 4


@pytest.mark.parametrize("vocabulary", [1, 2, 127, 1_009])
def test_any_vocabulary_size(vocabulary):
    leaves, labels = operands(7, 3, vocabulary)
    s = call(leaves, labels, temperatures=(0.8,), chunk=3)
    right = reference((leaves[0] @ leaves[1].t() + leaves[2]).detach(), labels, (0.8,))
    for a, b in zip(measured(s), measured(right), strict=True):
        close(a.detach(), b, 1e-12)


def test_no_rows():
    leaves, labels = operands(0, 3, 11)
    s = call(leaves, labels, temperatures=(0.8, 1.2))
    assert s.logprobs.shape == s.entropy.shape == (0,)
    assert s.tempered.shape == (2, 0)
    for grad, leaf in zip(gradients(leaves, weighted(s)), leaves, strict=True):
        assert grad.shape == leaf.shape and not grad.any()


GOOD = {"hidden": torch.zeros(2, 3), "weight": torch.zeros(5, 3), "labels": torch.tensor([0, 4])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0, 5])}, r"labels: got 5; must be token ids in \[0, 5\)"),
        ({"labels": torch.tensor([-100, 4])}, r"labels: got -100; must be token ids in \[0, 5\)"),
        ({"labels": torch.tensor([0.0, 4.0])}, "labels: got torch.float32; must be torch.int64"),
        ({"labels": torch.tensor([0])}, r"labels: got .*\(1,\).*must be of shape \[2\]"),
        ({"temperatures": (1.0, 0.0)}, "temperatures: got 0.0; must be positive"),
        ({"temperatures": (-1.0,)}, "temperatures: got -1.0; must be positive"),
        ({"temperatures": (math.nan,)}, "temperatures: got nan; must be positive"),
        ({"temperatures": (math.inf,)}, "temperatures: got inf; must be positive"),
        ({"chunk": 0}, "chunk: got 0; must be a positive number"),
        ({"hidden": torch.zeros(1, 2, 3)}, r"hidden: got .*\(1, 2, 3\).*must be floating, \[N, D\]"),
        ({"hidden": torch.zeros(2, 3, dtype=torch.long)}, "hidden: got .*int64"),
        ({"weight": torch.zeros(5, 4)}, r"weight: got .*\(5, 4\).*must be torch.float32 \[V, 3\]"),
        ({"weight": torch.zeros(0, 3)}, r"weight: got .*\(0, 3\)"),
        ({"weight": torch.zeros(5, 3, dtype=torch.bfloat16)}, r"weight: got .*bfloat16.*float32 \[V, 3\]"),
        ({"bias": torch.zeros(4)}, r"bias: got .*\(4,\).*must be torch.float32 \[5\]"),
        ({"bias": torch.zeros(5, dtype=torch.float64)}, "bias: got .*float64.*must be torch.float32"),
    ],
)
def test_bad_inputs_are_named(change, message):
    token_statistics(**GOOD)
    with pytest.raises(ValueError, match=message):
        token_statistics(**{**GOOD, **change})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 5), torch.tensor([0, 5])), r"labels: got 5; must be token ids in \[0, 5\)"),
        ((torch.zeros(2, 5), torch.tensor([0])), "labels: got .*of shape"),
        ((torch.zeros(2, 5, dtype=torch.long), torch.tensor([0, 1])), "logits: got .*floating"),
    ],
)
def test_bad_logits_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        logits_statistics(*arguments)


# With a compiler and without.


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="needs a C++ compiler")
def test_compiled_equals_eager():
    leaves, labels = operands(37, 8, 1_003, dtype=torch.float32, bias=False)
    eager = call(leaves, labels, temperatures=(0.8, 1.2), chunk=10, compile=False)
    compiled = call(leaves, labels, temperatures=(0.8, 1.2), chunk=10, compile=True)
    for a, b in zip(measured(compiled), measured(eager), strict=True):
        close(a, b, 2e-6)
    for a, b in zip(gradients(leaves, weighted(compiled)), gradients(leaves, weighted(eager)), strict=True):
        close(a, b, 1e-6 * b.abs().max().item())
    assert not kernels._COMPILED.reduce.failed and not kernels._COMPILED.differentiate.failed


def test_compiling_is_for_large_calls(monkeypatch):
    used = []
    spy = kernels.Kernel(
        lambda *a: used.append("reduce") or kernels.reduce(*a),
        lambda *a: used.append("differentiate") or kernels.differentiate(*a),
        scratch=False,
    )
    monkeypatch.setattr(kernels, "_COMPILED", spy)
    leaves, labels = operands(6, 3, 11)
    call(leaves, labels).entropy.sum().backward()
    call(leaves, labels, compile=False).entropy.sum().backward()
    assert used == []
    call(leaves, labels, compile=True).entropy.sum().backward()
    monkeypatch.setattr(kernels, "_COMPILE_FROM", 6 * 11)
    call(leaves, labels).entropy.sum().backward()
    assert used == ["reduce", "differentiate"] * 2


def test_a_failing_compile_is_tried_once_and_ends_no_run(monkeypatch, uncompiled, caplog):
    attempts = []

    def broken(function, **options):
        attempts.append(function)
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", broken)
    leaves, labels = operands(6, 3, 11)
    want = call(leaves, labels, temperatures=(0.8,), chunk=2, compile=False)
    with caplog.at_level(logging.INFO, logger="aepo.entropy.kernels"):
        for _ in range(2):
            got = call(leaves, labels, temperatures=(0.8,), chunk=2, compile=True)
            slopes = gradients(leaves, weighted(got))
    for a, b in zip(measured(got), measured(want), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(slopes, gradients(leaves, weighted(want)), strict=True):
        assert torch.equal(a, b)
    assert len(attempts) == 2  # one for each function
    assert "no compiler" in caplog.text


def test_running_out_of_memory_is_not_mistaken_for_a_missing_compiler(monkeypatch, uncompiled):
    def full(*args):
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(torch, "compile", lambda function, **options: full)
    leaves, labels = operands(2, 3, 5)
    with pytest.raises(torch.OutOfMemoryError):
        call(leaves, labels, compile=True)
    assert not uncompiled.reduce.failed


def test_no_compiler_on_the_machine(tmp_path):
    """As on a machine without g++, and with nothing beside torch imported."""
    script = """
        import sys, torch
        from aepo.entropy.statistics import token_statistics
        from aepo.entropy.kernels import _COMPILED
        torch.manual_seed(0)
        h, w = torch.randn(20, 4, requires_grad=True), torch.randn(50, 4, requires_grad=True)
        y = torch.randint(50, (20,))
        found = []
        for compile in (True, False):
            s = token_statistics(h, w, y, temperatures=(0.8,), compile=compile)
            loss = s.entropy.sum() + s.logprobs.sum() + s.tempered.sum()
            found.append((s.entropy, s.logprobs, s.tempered, *torch.autograd.grad(loss, (h, w))))
        assert all(map(torch.equal, *found))
        assert _COMPILED.reduce.failed and _COMPILED.differentiate.failed
        assert not {"transformers", "tyro", "rich"} & set(sys.modules)
    """
    bare = {**os.environ, "CXX": "/nonexistent/c++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env=bare, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == ""


def test_triton_is_for_cuda_unless_asked_otherwise():
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert kernels.choose(cuda, 1, None) is kernels._TRITON
    assert kernels.choose(cuda, 1, True) is kernels.choose(cpu, 2**24, None) is kernels._COMPILED
    assert kernels.choose(cuda, 2**24, False) is kernels.choose(cpu, 1, None) is kernels._EAGER


def test_a_missing_triton_ends_no_run(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "aepo.entropy.triton", None)
    functions = kernels.reduce, kernels.differentiate
    bare = kernels.Kernel(*(kernels._Fallible(function, kernels._triton) for function in functions), scratch=False)
    leaves, labels = operands(6, 3, 11)
    want = call(leaves, labels, temperatures=(0.8,), chunk=2)
    monkeypatch.setattr(kernels, "choose", lambda *args: bare)
    with caplog.at_level(logging.INFO, logger="aepo.entropy.kernels"):
        got = call(leaves, labels, temperatures=(0.8,), chunk=2)
        slopes = gradients(leaves, weighted(got))
    assert bare.reduce.failed and bare.differentiate.failed and "aepo.entropy.triton" in caplog.text
    for a, b in zip(slopes, gradients(leaves, weighted(want)), strict=True):
        assert torch.equal(a, b)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_agrees_with_the_cpu(dtype):
    leaves, labels = operands(40, 32, 1_003, dtype=dtype)
    there = [x.detach().cuda().requires_grad_() for x in leaves]
    near = call(leaves, labels, temperatures=(0.8,), chunk=16)
    for compile in (False, True, None):
        far = call(there, labels.cuda(), temperatures=(0.8,), chunk=16, compile=compile)
        for a, b in zip(measured(far), measured(near), strict=True):
            close(a.cpu(), b, 2e-5)
        slopes = torch.autograd.grad(far.entropy.sum() + far.logprobs.sum() + far.tempered.sum(), there)
        want = torch.autograd.grad(
            near.entropy.sum() + near.logprobs.sum() + near.tempered.sum(), leaves, retain_graph=True
        )
        for a, b in zip(slopes, want, strict=True):
            close(
                a.cpu().double(),
                b.double(),
                (1e-5 if dtype == torch.float32 else 0.02) * b.abs().max().item(),
            )


# The one-sample estimate.

PI = torch.softmax(torch.tensor(LOGITS, dtype=torch.float64), 0)


def expected_estimate(drawn_from: Tensor) -> float:
    """E[sampled_entropy] over all tokens of a distribution, each counted with its probability."""
    one = torch.ones(1)
    return sum(q * sampled_entropy(PI[a : a + 1].log(), one).mean for a, q in enumerate(drawn_from.tolist()))


def test_sampled_entropy_is_unbiased_on_policy():
    assert expected_estimate(PI) == pytest.approx(ENTROPY, abs=1e-6)


def test_sampled_entropy_of_other_tokens_is_a_cross_entropy():
    hot = torch.softmax(PI.log() / 1.2, 0)
    nucleus = torch.where(PI > 0.1, PI, 0.0) / PI[PI > 0.1].sum()  # top-p 0.8
    for drawn_from, value in ((hot, 1.060869), (nucleus, 0.709131)):
        cross = -(drawn_from * PI.log()).sum().item()
        assert expected_estimate(drawn_from) == pytest.approx(cross, abs=1e-12)
        assert cross == pytest.approx(value, abs=1e-6)
        own = -(drawn_from * drawn_from.clamp_min(1e-300).log()).sum().item()
        assert abs(cross - ENTROPY) > 0.1 and abs(cross - own) > 0.005


def test_the_naive_gradient_has_zero_mean_and_the_exact_one_does_not():
    logits = torch.tensor(LOGITS, dtype=torch.float64).expand(4, 4).clone().requires_grad_()
    s = from_logits(logits, torch.arange(4))
    (naive,) = torch.autograd.grad(-(PI * s.logprobs).sum(), logits, retain_graph=True)  # row a: token a drawn
    close(naive.sum(0), torch.zeros(4, dtype=torch.float64), 1e-12)
    assert naive.abs().max() > 0.05  # each sample by itself does push
    (exact,) = torch.autograd.grad((PI * s.entropy).sum(), logits, retain_graph=True)
    assert exact.sum(0).tolist() == pytest.approx(ENTROPY_GRADIENT, abs=5e-7)
    (score,) = torch.autograd.grad(-(PI * s.logprobs.detach() * s.logprobs).sum(), logits)
    close(score.sum(0), exact.sum(0), 1e-12)  # the right use of samples: -E[stop(log pi) grad log pi]
    assert isinstance(sampled_entropy(s.logprobs, torch.ones(4)).total, float)  # nothing to differentiate


def test_off_policy_the_naive_gradient_pushes_away_from_the_samples():
    """It is +grad KL(pi_old || pi): minimising the 'entropy loss' moves pi away from what pi_old drew."""
    old = torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64)
    logits = torch.tensor(LOGITS, dtype=torch.float64).expand(4, 4).clone().requires_grad_()
    (naive,) = torch.autograd.grad(-(old * from_logits(logits, torch.arange(4)).logprobs).sum(), logits)
    z = torch.tensor(LOGITS, dtype=torch.float64, requires_grad=True)
    divergence = (old * (old.log() - z.log_softmax(0))).sum()
    close(naive.sum(0), *torch.autograd.grad(divergence, z), 1e-12)


def test_one_sample_is_noisy_and_the_exact_entropy_is_not():
    one = torch.ones(1)
    single = torch.tensor([sampled_entropy(PI[a : a + 1].log(), one).mean for a in range(4)], dtype=torch.float64)
    assert (PI * (single - ENTROPY) ** 2).sum().sqrt().item() == pytest.approx(0.785231, abs=1e-6)
    logits = torch.tensor(LOGITS, dtype=torch.float64).expand(4, 4)
    assert from_logits(logits, torch.arange(4)).entropy.std() < 1e-12  # whatever token was drawn


def test_sampled_entropy_divides_once():
    logprobs = torch.tensor([[-1.0, -1.0, -1.0], [-4.0, math.nan, -math.inf]])
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    whole = sampled_entropy(logprobs, mask)
    assert whole == Metric(7.0, 4)
    rows = [sampled_entropy(logprobs[i], mask[i]) for i in range(2)]
    assert (rows[0] + rows[1]).mean == whole.mean == 1.75
    assert sum(m.mean for m in rows) / 2 == 2.5  # a mean of means is another number
    with pytest.raises(ValueError, match="mask: got"):
        sampled_entropy(logprobs, mask[0])
