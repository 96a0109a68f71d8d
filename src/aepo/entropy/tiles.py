"""The token statistics over tiles of rows: the products with the head, forward and backward.

The backward pass makes each tile of logits a second time; between the passes only the sums of the rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aepo.entropy.kernels import Kernel
from aepo.entropy.partial import Kept

# How many rows a tile has when the caller leaves `chunk` open. Thin tiles stay in the cache; but the gradient
# of the head, [V, D], is read and written once per tile, so not too thin.
_CACHED_LOGITS = 2**19  # 2 MiB of float32
_GOOD_ROWS, _FEWEST_ROWS = 256, 64
_CPU_LOGITS, _ACCELERATOR_LOGITS = 2**23, 2**27  # 32 and 512 MiB

# The products with the head.

_MIXED_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")  # torch 2.8: 16-bit factors, float32 result, on CUDA


class _Head(NamedTuple):
    """The LM head as it enters the products, whose results have the `dtype` of the statistics."""

    weight: Tensor
    bias: Tensor | None
    dtype: torch.dtype

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> _Head:
        dtype = torch.promote_types(weight.dtype, torch.float32)
        if not (weight.is_cuda and _MIXED_PRODUCTS):
            weight = weight.to(dtype)  # once per pass, not once per tile
        return cls(weight, None if bias is None else bias.to(dtype), dtype)

    def logits(self, hidden: Tensor, out: Tensor) -> Tensor:
        self._product(hidden, self.weight.t(), out)
        return out if self.bias is None else out.add_(self.bias)

    def hidden_gradient(self, dz: Tensor) -> Tensor:
        return self._product(dz, self.weight)

    def add_weight_gradient(self, total: Tensor, dz: Tensor, hidden: Tensor) -> None:
        left, right = dz.t(), hidden.to(self.weight.dtype)
        if self.weight.dtype == self.dtype:
            total.addmm_(left, right)
        else:
            torch.addmm(total, left, right, out_dtype=self.dtype, out=total)

    def _product(self, left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
        left = left.to(right.dtype)
        if right.dtype == self.dtype:
            return torch.mm(left, right, out=out)
        return torch.mm(left, right, out_dtype=self.dtype, out=out)


# From the sums of a row to its statistics, and from their gradients to the row's slopes.


class Plan(NamedTuple):
    """What is computed and how; temperature 1 comes first."""

    temperatures: tuple[float, ...]
    entropy: bool
    kept: Kept | None
    chunk: int
    kernel: Kernel

    def temperatures_like(self, values: Tensor) -> Tensor:
        """[1 + K, 1], of the dtype and on the device of `values`."""
        return torch.tensor(self.temperatures, dtype=values.dtype, device=values.device).unsqueeze(1)

    def tiles(self, rows: int) -> list[slice]:
        """Slices of at most `chunk` rows and of about one size; none when there are no rows."""
        count = -(-rows // self.chunk)
        return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def default_chunk(device: torch.device, vocabulary: int) -> int:
    """Rows of a tile."""
    if device.type != "cpu":
        return max(_FEWEST_ROWS, _ACCELERATOR_LOGITS // vocabulary)
    return max(_FEWEST_ROWS, min(max(_GOOD_ROWS, _CACHED_LOGITS // vocabulary), _CPU_LOGITS // vocabulary))


class _Sums(NamedTuple):
    """What the forward pass keeps of each row: all that the backward pass needs beside the logits; s = z - peak."""

    peak: Tensor  # [N], the largest logit
    totals: Tensor  # [1 + K, N], sum exp(s / T), temperature 1 first
    moment: Tensor | None  # [N], sum exp(s) s, when the entropy was asked for
    cut: Tensor | None  # [N], between the kept and the removed logits, when the kept entropy was asked for
    kept: Tensor | None  # [2, N], the total and the moment over the kept logits

    @classmethod
    def of(cls, z: Tensor, scratch: Sequence[Tensor], inverse: Tensor, plan: Plan, masked: bool) -> _Sums:
        """Those of one tile of logits, which it may overwrite."""
        threshold = None if plan.kept is None else plan.kept.threshold(z)
        peak, totals, moment, below, kept = plan.kernel.reduce(z, scratch, inverse, threshold, plan.entropy, masked)
        cut = None if threshold is None or below is None else _between(below, threshold.squeeze(-1))
        return cls(peak, totals, moment, cut, kept)

    @classmethod
    def joined(cls, tiles: Sequence[_Sums]) -> _Sums:
        whole: list[Any] = [None if tile[0] is None else torch.cat(tile, -1) for tile in zip(*tiles, strict=True)]
        return cls(*whole)


def _between(below: Tensor, threshold: Tensor) -> Tensor:
    """Half way, but above `below`: the backward pass makes the logits anew, and they may come out rounded otherwise."""
    return torch.maximum(below / 2 + threshold / 2, below.nextafter(threshold))


def _wide(values: Tensor) -> Tensor:
    """One number per row is cheap, so arithmetic on those is in float64 where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _statistics(chosen: Tensor, sums: _Sums, plan: Plan) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The labels' logits [N] and the sums -> log pi^T(label) [1 + K, N], entropy [N], kept entropy [N]."""
    dtype, totals = chosen.dtype, _wide(sums.totals)
    logprobs = (_wide(chosen) - _wide(sums.peak)) / plan.temperatures_like(totals) - totals.log()
    entropy = None if sums.moment is None else _entropy(sums.totals[0], sums.moment).to(dtype)
    kept_entropy = None if sums.kept is None else _entropy(sums.kept[0], sums.kept[1]).to(dtype)
    return logprobs.to(dtype), entropy, kept_entropy


def _entropy(total: Tensor, moment: Tensor) -> Tensor:
    total = _wide(total)
    return total.log() - _wide(moment) / total


def _by_entropy(total: Tensor, moment: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """(offset, slope): exp(s) (offset + slope s) is the gradient by the logits."""
    total = _wide(total)
    slope = -upstream / total
    return -slope * moment / total, slope


class _Slopes(NamedTuple):
    """The gradient of the loss L by a row of logits, as a few numbers per row:

        dL/dz_a = exp(s_a) (offset + slope s_a) + sum_k tempered_k exp(s_a / T_k) + label [a = y]
                  + exp(s_a) (inside_0 + inside_1 s_a) [z_a >= cut]

    which gathers, with p_T = exp(s / T) / S_T and weighted by the upstream gradients,

        d log pi^T(y)/dz = (onehot(y) - p_T) / T
        dH/dz            = -p (log p + H) = -exp(s) / S_1 (s - M / S_1)

    and the same dH/dz over the kept logits alone.
    """

    offset: Tensor  # [N]
    slope: Tensor | None  # [N], when the entropy has a gradient
    tempered: Tensor  # [K, N]
    label: Tensor  # [N]
    cut: Tensor | None  # [N], when the kept entropy has a gradient
    inside: Tensor | None  # [2, N]

    @classmethod
    def of(cls, sums: _Sums, plan: Plan, upstream: _Upstream) -> _Slopes:
        dtype, totals = sums.peak.dtype, _wide(sums.totals)
        scaled = upstream.logprobs / plan.temperatures_like(totals)
        offset, tempered = -scaled[0] / totals[0], -scaled[1:] / totals[1:]
        slope = cut = inside = None
        if upstream.entropy is not None and sums.moment is not None:
            more, slope = _by_entropy(sums.totals[0], sums.moment, upstream.entropy)
            offset, slope = offset + more, slope.to(dtype)
        if upstream.kept_entropy is not None and sums.kept is not None:
            total, moment = sums.kept
            cut, inside = sums.cut, torch.stack(_by_entropy(total, moment, upstream.kept_entropy)).to(dtype)
        return cls(offset.to(dtype), slope, tempered.to(dtype), scaled.sum(0).to(dtype), cut, inside)

    def at(self, rows: Tensor, temperatures: Tensor) -> _Slopes:
        """Those of some rows and some temperatures."""
        used = self._replace(tempered=self.tempered[temperatures])
        some: list[Any] = [None if values is None else values[..., rows] for values in used]
        return _Slopes(*some)


# The two passes, and the autograd function around them.


class _Upstream(NamedTuple):
    """The gradients of the loss by what `Fused` returned; None where there is none."""

    logprobs: Tensor  # [1 + K, N]
    entropy: Tensor | None  # [N]
    kept_entropy: Tensor | None  # [N]


class _Gradients(NamedTuple):
    """Where the gradients gather; None where none is needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def zeros(cls, hidden: Tensor, head: _Head, needed: Sequence[bool]) -> _Gradients:
        return cls(
            torch.zeros_like(hidden) if needed[0] else None,
            torch.zeros_like(head.weight, dtype=head.dtype) if needed[1] else None,
            torch.zeros_like(head.bias) if needed[2] and head.bias is not None else None,
        )

    def add(self, rows: Tensor, dz: Tensor, hidden: Tensor, head: _Head) -> None:
        """One tile: dz [n, V] by the logits of `rows`, whose hidden states are [n, D]."""
        if self.bias is not None:
            self.bias.add_(dz.sum(0))
        dz = dz.to(head.weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = head.hidden_gradient(dz).to(hidden.dtype)
        if self.weight is not None:
            head.add_weight_gradient(self.weight, dz, hidden)


class _Passes(NamedTuple):
    """The way through all tokens, tile by tile, forward and back."""

    hidden: Tensor
    head: _Head
    labels: Tensor
    plan: Plan

    def room(self, rows: int, scratch: int) -> list[Tensor]:
        """A tile for the logits and `scratch` tiles to work in if the kernel wants them, for a whole pass.

        Taken and given back for every tile, they would fragment the heap to ten times their size.
        """
        shape = (min(rows, self.plan.chunk), self.head.weight.shape[0])
        tiles = 1 + scratch * self.plan.kernel.scratch
        return [self.hidden.new_empty(shape, dtype=self.head.dtype) for _ in range(tiles)]

    def forward(self) -> tuple[Tensor, _Sums]:
        """The label's logit [N] and the sums of every row."""
        chosen = self.hidden.new_empty(self.hidden.shape[0], dtype=self.head.dtype)
        inverse = self.plan.temperatures_like(chosen)[1:, 0].reciprocal()
        masked = self.head.bias is not None
        room = self.room(len(chosen), 1 + (self.plan.kept is not None))

        def tile(rows: slice) -> _Sums:
            hidden = self.hidden[rows]
            z, *scratch = (space[: len(hidden)] for space in room)
            self.head.logits(hidden, z)
            chosen[rows] = z.gather(1, self.labels[rows].unsqueeze(1)).squeeze(1)
            return _Sums.of(z, scratch, inverse, self.plan, masked)

        return chosen, _Sums.joined([tile(rows) for rows in self.plan.tiles(len(chosen)) or [slice(0)]])

    def backward(self, sums: _Sums, upstream: _Upstream, gradients: _Gradients) -> None:
        """Add up the gradients, over the rows and the temperatures that have an upstream gradient."""
        live = upstream.logprobs != 0
        active = live.any(0)
        for by in (upstream.entropy, upstream.kept_entropy):
            active = active if by is None else active | (by != 0)
        index, used = active.nonzero().squeeze(1), live[1:].any(1).nonzero().squeeze(1)
        inverse = self.plan.temperatures_like(sums.peak)[1:, 0].reciprocal()[used]
        slopes = _Slopes.of(sums, self.plan, upstream)
        masked = self.head.bias is not None
        room = self.room(len(index), 1 + (slopes.cut is not None) + bool(len(used)))

        def tile(rows: Tensor) -> None:
            hidden = self.hidden[rows]
            z, *scratch = (space[: len(rows)] for space in room)
            self.head.logits(hidden, z)
            offset, slope, tempered, label, cut, inside = slopes.at(rows, used)
            self.plan.kernel.differentiate(
                z, scratch, sums.peak[rows], inverse, offset, slope, tempered, cut, inside, masked
            )
            z.scatter_add_(1, self.labels[rows].unsqueeze(1), label.unsqueeze(1))
            gradients.add(rows, z, hidden, self.head)

        for rows in self.plan.tiles(len(index)):
            tile(index[rows])


class Fused(torch.autograd.Function):
    """hidden, weight, bias, labels, plan -> log pi^T(label) [1 + K, N]; entropy and kept entropy [N], None if not
    asked for.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, plan: Plan
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See `aepo.entropy.statistics.token_statistics`."""
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, sums = _Passes(hidden, _Head.of(weight, bias), labels, plan).forward()
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, labels, *sums)
        return _statistics(chosen, sums, plan)

    @staticmethod
    def backward(ctx: Any, by_logprobs: Tensor | None, by_entropy: Tensor | None, by_kept: Tensor | None) -> Any:
        """The gradients of hidden, weight and bias; RuntimeError when they are to be differentiated again."""
        if torch.is_grad_enabled():  # `once_differentiable` would return a constant, silently
            raise RuntimeError("token_statistics has no second derivative (create_graph=True was asked for)")
        hidden, weight, bias, labels, *saved = ctx.saved_tensors
        sums = _Sums(*saved)
        if by_logprobs is None:
            by_logprobs = torch.zeros_like(sums.totals)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head.of(weight, bias)
            gradients = _Gradients.zeros(hidden, head, ctx.needs_input_grad)
            upstream = _Upstream(by_logprobs, by_entropy, by_kept)
            _Passes(hidden, head, labels, ctx.plan).backward(sums, upstream, gradients)
        return *gradients, None, None  # cast to the dtypes of the inputs by autograd
