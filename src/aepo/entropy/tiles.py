"""This module computes token statistics over tiles of rows: the products with the LM head, forward and backward.

The backward pass computes each tile of logits a second time. Between the passes only the sums of the rows are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aepo.entropy.kernels import Kernel
from aepo.entropy.partial import FLOOR, Kept
from aepo.entropy.transform import LogitTransform

# These decide how many rows a tile has when `chunk` is None. A tile with few rows stays in the cache. But the gradient
# of the head, [V, D], is read and written once per tile, so a tile should not have too few.
_CACHED_LOGITS = 2**19  # 2 MiB of float32
_GOOD_ROWS, _FEWEST_ROWS = 256, 64
_CPU_LOGITS, _ACCELERATOR_LOGITS = 2**23, 2**27  # 32 and 512 MiB

# The products with the head.

_MIXED_PRODUCTS = hasattr(torch.ops.aten.mm, "dtype")  # torch 2.8: 16-bit factors, float32 result, on CUDA


class _Head(NamedTuple):
    """`_Head` is the LM head in the form in which it enters the products. `dtype` is that of the results."""

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


# The sums of a row give its statistics. The gradients by the statistics give the row's slopes.


class Plan(NamedTuple):
    """`Plan` says which statistics are computed, and how."""

    temperatures: tuple[float, ...]
    """The temperatures of the log-probabilities: 1 first, then the K that were asked for."""
    entropy: bool
    """Whether the exact entropy is computed."""
    kept: Kept | None
    """The part of the vocabulary of the kept entropy; None if it is not computed."""
    chunk: int
    """The largest number of rows of a tile."""
    kernel: Kernel
    """The implementation of the elementwise work."""
    transform: LogitTransform | None = None
    """What makes the logits of the LM head's output; None if they are the same."""

    def temperatures_like(self, values: Tensor) -> Tensor:
        """Return the temperatures, [1 + K, 1], with the dtype and the device of `values`."""
        return torch.tensor(self.temperatures, dtype=values.dtype, device=values.device).unsqueeze(1)

    def tiles(self, rows: int) -> list[slice]:
        """Return slices of at most `chunk` rows and of nearly equal size; an empty list when there are no rows."""
        count = -(-rows // self.chunk)
        return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def default_chunk(device: torch.device, vocabulary: int) -> int:
    """Return the number of rows of a tile for this device and size of the vocabulary."""
    if device.type != "cpu":
        return max(_FEWEST_ROWS, _ACCELERATOR_LOGITS // vocabulary)
    return max(_FEWEST_ROWS, min(max(_GOOD_ROWS, _CACHED_LOGITS // vocabulary), _CPU_LOGITS // vocabulary))


class _Sums(NamedTuple):
    """`_Sums` holds what the forward pass keeps of each row for the backward pass. In the formulas, s = z - peak."""

    peak: Tensor  # [N], the largest logit, after the transform
    totals: Tensor  # [1 + K, N], sum exp(s / T), temperature 1 first
    moment: Tensor | None  # [N], sum exp(s) s, when the entropy was asked for
    cut: Tensor | None  # [N], between kept and removed logits, before the transform, when asked for
    kept: Tensor | None  # [2, N], the total and the moment over the kept logits

    @classmethod
    def of(cls, z: Tensor, scratch: Sequence[Tensor], inverse: Tensor, plan: Plan, masked: bool) -> _Sums:
        """Return the sums of one tile of the LM head's output, [n, V]. The tile may be overwritten."""
        threshold = None if plan.kept is None else plan.kept.threshold(z, plan.transform)
        peak, totals, moment, below, kept = plan.kernel.reduce(
            z, scratch, inverse, threshold, plan.entropy, masked, plan.transform
        )
        cut = None if threshold is None or below is None else _between(below, threshold.squeeze(-1))
        return cls(peak, totals, moment, cut, kept)

    @classmethod
    def joined(cls, tiles: Sequence[_Sums]) -> _Sums:
        whole: list[Any] = [None if tile[0] is None else torch.cat(tile, -1) for tile in zip(*tiles, strict=True)]
        return cls(*whole)


def _between(below: Tensor, threshold: Tensor) -> Tensor:
    """Return the middle between the two logits, but more than `below`.

    The backward pass computes the logits again, and its rounding may differ. A cut in the middle still separates them.
    """
    return torch.maximum(below / 2 + threshold / 2, below.nextafter(threshold))


def _wide(values: Tensor) -> Tensor:
    """Return the values in float64 where the device has it. One number per row is cheap enough for it."""
    return values if values.device.type == "mps" else values.double()


Results = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
"""The results of `Fused`."""


def _statistics(chosen: Tensor, sums: _Sums, plan: Plan) -> Results:
    """Return log pi^T(label) [1 + K, N], the entropy [N], the kept entropy [N] and the kept log-probability [N], from
    the LM head's output for the labels [N] and the sums. What was not asked for is None.
    """
    dtype, totals = chosen.dtype, _wide(sums.totals)
    label = _wide(chosen)
    if plan.transform is not None:
        # The kernel's tanh rounds in its own way. A label above the peak would have a probability above 1.
        label = torch.minimum(plan.transform(label), _wide(sums.peak))
    logprobs = (label - _wide(sums.peak)) / plan.temperatures_like(totals) - totals.log()
    entropy = None if sums.moment is None else _entropy(sums.totals[0], sums.moment).to(dtype)
    kept_entropy = None if sums.kept is None else _entropy(sums.kept[0], sums.kept[1]).to(dtype)
    return logprobs.to(dtype), entropy, kept_entropy, _kept_logprobs(chosen, label, sums)


def _kept_logprobs(chosen: Tensor, label: Tensor, sums: _Sums) -> Tensor | None:
    """Return the label's log-probability among the kept tokens, [N]: FLOOR if it is not kept. None if none are kept.

    `chosen` is the LM head's output for the label, and `label` its logit.
    """
    if sums.kept is None or sums.cut is None:
        return None
    inside = label - _wide(sums.peak) - _wide(sums.kept[0]).log()
    return inside.to(chosen.dtype).masked_fill(chosen < sums.cut, FLOOR)


def _entropy(total: Tensor, moment: Tensor) -> Tensor:
    total = _wide(total)
    return total.log() - _wide(moment) / total


def _by_entropy(total: Tensor, moment: Tensor, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Return (offset, slope), such that exp(s) (offset + slope s) is the gradient by the logits."""
    total = _wide(total)
    slope = -upstream / total
    return -slope * moment / total, slope


class _Slopes(NamedTuple):
    """`_Slopes` describes the gradient of the loss L by a row of logits with a few numbers per row:

        dL/dz_a = exp(s_a) (offset + slope s_a) + sum_k tempered_k exp(s_a / T_k) + label [a = y]
                  + exp(s_a) (inside_0 + inside_1 s_a) [z_a >= cut]

    This is the sum of the following gradients, each times its upstream gradient, with p_T = exp(s / T) / S_T,

        d log pi^T(y)/dz = (onehot(y) - p_T) / T
        dH/dz            = -p (log p + H) = -exp(s) / S_1 (s - M / S_1)

    and of dH/dz over the kept logits alone. With a transform, z = softcap tanh(scale y / softcap), the gradient is
    taken by the LM head's output y: the upstream gradients get the factor scale, the kernel and the label's term the
    rest.
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
        """Return the slopes of these rows and these temperatures (two indices)."""
        used = self._replace(tempered=self.tempered[temperatures])
        some: list[Any] = [None if values is None else values[..., rows] for values in used]
        return _Slopes(*some)


# The two passes, and the autograd function around them.


class _Upstream(NamedTuple):
    """`_Upstream` holds the gradients of the loss by the results of `Fused`; None where there is no gradient."""

    logprobs: Tensor  # [1 + K, N]
    entropy: Tensor | None  # [N]
    kept_entropy: Tensor | None  # [N]

    def times(self, factor: float) -> _Upstream:
        """Return all gradients times the factor."""
        return _Upstream(*(None if by is None else by * factor for by in self))  # type: ignore[arg-type]


class _Gradients(NamedTuple):
    """`_Gradients` accumulates the gradients of the inputs; None where no gradient is needed."""

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
        """Add the gradient of one tile.

        Args:
            rows: The rows of the tile, [n].
            dz: The gradient of the loss by their logits, [n, V].
            hidden: Their hidden states, [n, D].
            head: The LM head.
        """
        if self.bias is not None:
            self.bias.add_(dz.sum(0))
        dz = dz.to(head.weight.dtype)
        if self.hidden is not None:
            self.hidden[rows] = head.hidden_gradient(dz).to(hidden.dtype)
        if self.weight is not None:
            head.add_weight_gradient(self.weight, dz, hidden)


class _Passes(NamedTuple):
    """`_Passes` runs the forward and the backward pass over all tokens, tile by tile."""

    hidden: Tensor
    head: _Head
    labels: Tensor
    plan: Plan

    def room(self, rows: int, scratch: int) -> list[Tensor]:
        """Return the tiles of a whole pass: one for the logits, and `scratch` more if the kernel works in them.

        They are allocated once: allocated and freed for every tile, they would fragment the heap to ten times their
        size.
        """
        shape = (min(rows, self.plan.chunk), self.head.weight.shape[0])
        tiles = 1 + scratch * self.plan.kernel.scratch
        return [self.hidden.new_empty(shape, dtype=self.head.dtype) for _ in range(tiles)]

    def forward(self) -> tuple[Tensor, _Sums]:
        """Return the LM head's output for the label, [N], and the sums of every row."""
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
        """Accumulate the gradients. Only rows and temperatures with an upstream gradient are computed."""
        live = upstream.logprobs != 0
        active = live.any(0)
        for by in (upstream.entropy, upstream.kept_entropy):
            active = active if by is None else active | (by != 0)
        index, used = active.nonzero().squeeze(1), live[1:].any(1).nonzero().squeeze(1)
        inverse = self.plan.temperatures_like(sums.peak)[1:, 0].reciprocal()[used]
        slopes = _Slopes.of(sums, self.plan, upstream)
        masked, transform = self.head.bias is not None, self.plan.transform
        capped = transform is not None and transform.softcap is not None
        room = self.room(len(index), 1 + (slopes.cut is not None) + bool(len(used)) + capped)

        def tile(rows: Tensor) -> None:
            hidden = self.hidden[rows]
            z, *scratch = (space[: len(rows)] for space in room)
            self.head.logits(hidden, z)
            offset, slope, tempered, label, cut, inside = slopes.at(rows, used)
            place = self.labels[rows].unsqueeze(1)
            if transform is not None and transform.softcap is not None:
                label = label * (1 - transform.bounded(z.gather(1, place).squeeze(1)).square())
            self.plan.kernel.differentiate(
                z, scratch, sums.peak[rows], inverse, offset, slope, tempered, cut, inside, masked, transform
            )
            z.scatter_add_(1, place, label.unsqueeze(1))
            gradients.add(rows, z, hidden, self.head)

        for rows in self.plan.tiles(len(index)):
            tile(index[rows])


class Fused(torch.autograd.Function):
    """`Fused` is the autograd function from (hidden, weight, bias, labels, plan) to the token statistics.

    Its results are log pi^T(label) [1 + K, N], the entropy [N], the kept entropy [N], and the label's log-probability
    among the kept tokens [N], which has no gradient. What the plan does not ask for is None.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, plan: Plan) -> Results:
        """Return the statistics; `aepo.entropy.statistics.token_statistics` describes the arguments."""
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, sums = _Passes(hidden, _Head.of(weight, bias), labels, plan).forward()
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, labels, *sums)
        results = _statistics(chosen, sums, plan)
        if results[3] is not None:
            ctx.mark_non_differentiable(results[3])
        return results

    @staticmethod
    def backward(
        ctx: Any, by_logprobs: Tensor | None, by_entropy: Tensor | None, by_kept: Tensor | None, _: None
    ) -> Any:
        """Return the gradients of hidden, weight and bias.

        Raises:
            RuntimeError: The gradients are to be differentiated again.
        """
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
            if ctx.plan.transform is not None:
                upstream = upstream.times(ctx.plan.transform.scale)
            _Passes(hidden, head, labels, ctx.plan).backward(sums, upstream, gradients)
        return *gradients, None, None  # autograd casts them to the dtypes of the inputs
