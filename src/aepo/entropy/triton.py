# mypy: disallow-untyped-decorators=False, disallow-any-unimported=False
"""This module does the elementwise work of `aepo.entropy.kernels` in two Triton kernels. Each reads the logits once.

In the forward pass, one program reads one row, block by block. Its sums are relative to the largest logit so far. When
that rises by d, with r = exp(-d), a total S becomes r S and a moment M becomes r (M - d S). In the backward pass, one
program works on one block of one row. Each lane has a sum of its own in the dtype of the logits; the lanes are added
at the end.

Both kernels make the logits z of the LM head's output y in registers, so a scale or a soft cap moves no more memory.

The module needs Triton. Under TRITON_INTERPRET=1 it runs on the CPU, slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton  # type: ignore[import-not-found,import-untyped,unused-ignore]
import triton.language as tl  # type: ignore[import-not-found,import-untyped,unused-ignore]
from torch import Tensor

from aepo.entropy.partial import FLOOR
from aepo.entropy.transform import LogitTransform

_FLOOR = tl.constexpr(FLOOR)
_FORWARD_BLOCK, _BACKWARD_BLOCK = 2048, 1024


@triton.jit
def _tanh(x: Any) -> Any:
    # Triton's own tanh does not run in its interpreter. Near 0 this is a Pade approximant, whose relative error is
    # 3e-15 at 0.6. Further out the exponential function does not cancel.
    y = x * x
    near = x * (135135 + y * (17325 + y * (378 + y))) / (135135 + y * (62370 + y * (3150 + y * 28)))
    e = tl.exp(-2 * tl.abs(x))
    far = (1 - e) / (1 + e)
    return tl.where(tl.abs(x) < 0.6, near, tl.where(x < 0, -far, far))


@triton.jit
def _reduce_row(
    logits: Any,
    inverse: Any,
    threshold: Any,
    peaks: Any,
    totals: Any,
    moments: Any,
    belows: Any,
    kepts: Any,
    rows: Any,
    vocabulary: Any,
    stride: Any,
    K: tl.constexpr,
    LANES: tl.constexpr,
    ENTROPY: tl.constexpr,
    KEPT: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    # One program per row. y is the output of the LM head, z the logit; SOFTCAP is 0 for no soft cap.
    # LANES is the smallest power of two that is at least K.
    row = tl.program_id(0).to(tl.int64)  # int64, because row * stride may exceed 2^31
    dtype = logits.dtype.element_ty
    ks = tl.arange(0, LANES)
    peak = tl.full([], _FLOOR, dtype)
    total = tl.zeros([BLOCK], dtype)
    moment = tl.zeros([BLOCK], dtype)
    if K > 0:
        faster = tl.load(inverse + ks, mask=ks < K, other=1.0)
        tempered = tl.zeros([LANES, BLOCK], dtype)
    if KEPT:
        least = tl.load(threshold + row)
        below = tl.full([BLOCK], float("-inf"), dtype)
        kept_total = tl.zeros([BLOCK], dtype)
        kept_moment = tl.zeros([BLOCK], dtype)
    for start in range(0, vocabulary, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        y = tl.load(logits + row * stride + columns, mask=columns < vocabulary, other=float("-inf"))
        z = y
        if SOFTCAP != 0:  # a cap would lift the lanes beyond the vocabulary from -inf
            z = tl.where(columns < vocabulary, _tanh(y * (SCALE / SOFTCAP)) * SOFTCAP, float("-inf"))
        elif SCALE != 1:
            z = y * SCALE
        higher = tl.maximum(peak, tl.max(z, 0))
        change = peak - higher
        shrink = tl.exp(change)
        s = tl.maximum(z - higher, _FLOOR)
        e = tl.exp(s)
        if ENTROPY:
            moment = shrink * (moment + change * total) + e * s
        total = shrink * total + e
        if K > 0:
            tempered = tempered * tl.exp(change * faster)[:, None] + tl.exp(s[None, :] * faster[:, None])
        if KEPT:
            inside = y >= least
            below = tl.maximum(below, tl.where(inside, float("-inf"), y))
            kept_moment = shrink * (kept_moment + change * kept_total) + tl.where(inside, e * s, 0.0)
            kept_total = shrink * kept_total + tl.where(inside, e, 0.0)
        peak = higher
    tl.store(peaks + row, peak)
    tl.store(totals + row, tl.sum(total, 0))
    if ENTROPY:
        tl.store(moments + row, tl.sum(moment, 0))
    if K > 0:
        tl.store(totals + (1 + ks) * rows + row, tl.sum(tempered, 1), mask=ks < K)
    if KEPT:
        tl.store(belows + row, tl.max(below, 0))
        tl.store(kepts + row, tl.sum(kept_total, 0))
        tl.store(kepts + rows + row, tl.sum(kept_moment, 0))


@triton.jit
def _differentiate_block(
    logits: Any,
    inverse: Any,
    peaks: Any,
    offsets: Any,
    slopes: Any,
    tempered: Any,
    cuts: Any,
    insides: Any,
    rows: Any,
    vocabulary: Any,
    stride: Any,
    K: tl.constexpr,
    ENTROPY: tl.constexpr,
    KEPT: tl.constexpr,
    SCALE: tl.constexpr,
    SOFTCAP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places = logits + row * stride + columns
    y = tl.load(places, mask=columns < vocabulary, other=0.0)
    z = y
    if SOFTCAP != 0:
        t = _tanh(y * (SCALE / SOFTCAP))
        z = t * SOFTCAP
    elif SCALE != 1:
        z = y * SCALE
    s = tl.maximum(z - tl.load(peaks + row), _FLOOR)
    factor = tl.load(offsets + row)
    if ENTROPY:
        factor += tl.load(slopes + row) * s
    if KEPT:
        inside = tl.load(insides + row) + tl.load(insides + rows + row) * s
        factor += tl.where(y >= tl.load(cuts + row), inside, 0.0)
    gradient = tl.exp(s) * factor
    for k in tl.static_range(K):
        gradient += tl.load(tempered + k * rows + row) * tl.exp(s * tl.load(inverse + k))
    if SOFTCAP != 0:
        gradient *= 1 - t * t
    tl.store(places, gradient, mask=columns < vocabulary)


def _constants(transform: LogitTransform | None) -> dict[str, float]:
    transform = transform or LogitTransform()
    return {"SCALE": transform.scale, "SOFTCAP": transform.softcap or 0.0}


def reduce(
    z: Tensor,
    scratch: Sequence[Tensor],
    inverse: Tensor,
    threshold: Tensor | None,
    entropy: bool,
    masked: bool,
    transform: LogitTransform | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the sums of `aepo.entropy.kernels.reduce`. z is not overwritten, and any logit may be -inf."""
    rows, vocabulary = z.shape
    count = len(inverse)
    peak, totals = z.new_empty(rows), z.new_empty(1 + count, rows)
    moment = z.new_empty(rows) if entropy else None
    below, kept = (None, None) if threshold is None else (z.new_empty(rows), z.new_empty(2, rows))
    with torch.cuda.device_of(z):
        _reduce_row[(rows,)](
            z,
            inverse.contiguous(),
            None if threshold is None else threshold.contiguous(),
            peak,
            totals,
            moment,
            below,
            kept,
            rows,
            vocabulary,
            z.stride(0),
            K=count,
            LANES=triton.next_power_of_2(max(1, count)),
            ENTROPY=entropy,
            KEPT=threshold is not None,
            **_constants(transform),
            BLOCK=min(_FORWARD_BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )
    return peak, totals, moment, below, kept


def differentiate(
    z: Tensor,
    scratch: Sequence[Tensor],
    peak: Tensor,
    inverse: Tensor,
    offset: Tensor,
    slope: Tensor | None,
    tempered: Tensor,
    cut: Tensor | None,
    inside: Tensor | None,
    masked: bool,
    transform: LogitTransform | None = None,
) -> None:
    """Overwrite the tile z with the gradient, as `aepo.entropy.kernels.differentiate` does.

    Any logit may be -inf.
    """
    rows, vocabulary = z.shape
    block = min(_BACKWARD_BLOCK, triton.next_power_of_2(vocabulary))
    values = (inverse, peak, offset, slope, tempered, cut, inside)
    with torch.cuda.device_of(z):
        _differentiate_block[(rows, triton.cdiv(vocabulary, block))](
            z,
            *(None if value is None else value.contiguous() for value in values),
            rows,
            vocabulary,
            z.stride(0),
            K=len(inverse),
            ENTROPY=slope is not None,
            KEPT=cut is not None,
            **_constants(transform),
            BLOCK=block,
        )
