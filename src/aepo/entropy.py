"""Token statistics: log-probability, exact entropy, and log-probability at other temperatures.

    pi(a)   = softmax(z)_a            z [V] the logits of one token's position, temperature 1
    H       = -sum_a pi(a) log pi(a)  exact entropy, nats
    pi^T(a) = softmax(z / T)_a        what a sampler at temperature T draws from

`token_statistics` computes them from hidden states and the LM head, with gradients, over tiles of rows:
[N, V] logits never exist. `logits_statistics` has the same definitions for people who hold the logits.

All sums of a row are taken after its largest logit m was subtracted, with s = z - m:

    S_T = sum_a exp(s_a / T)    M = sum_a exp(s_a) s_a
    log pi^T(y) = s_y / T - log S_T        H = log S_1 - M / S_1

The usual `logsumexp(z) - sum pi z` is the same number and loses ten times more of it in float32.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aepo.checks import require
from aepo.kept import FLOOR, Kept, KeptSums
from aepo.types import Metric

_log = logging.getLogger(__name__)

# How many rows a tile has when the caller leaves `chunk` open. Thin tiles stay in the cache; but the gradient
# of the head, [V, D], is read and written once per tile, so not too thin.
_CACHED_LOGITS = 2**19  # 2 MiB of float32
_GOOD_ROWS, _FEWEST_ROWS = 256, 64
_CPU_LOGITS, _ACCELERATOR_LOGITS = 2**23, 2**27  # 32 and 512 MiB
# Fewer logits than this in one call, and compiling (seconds, once) is left out: it would gain milliseconds.
_COMPILE_FROM = 2**24


@dataclass(frozen=True)
class TokenStatistics:
    """Statistics of N tokens; float32, or float64 when the inputs are.

    logprobs: [N], log pi(label) at temperature 1, nats. entropy: [N], exact entropy of pi at temperature 1,
    nats; NaN when it was not asked for, so that it cannot pass for a measurement. tempered: [K, N],
    log pi^T(label) for each of the K temperatures asked for, in their order. kept_entropy: [N], exact entropy over
    the kept part of the vocabulary, nats; NaN when it was not asked for.
    """

    logprobs: Tensor
    entropy: Tensor
    tempered: Tensor
    kept_entropy: Tensor


def token_statistics(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    temperatures: Sequence[float] = (),
    entropy: bool = True,
    kept: Kept | None = None,
    chunk: int | None = None,
    compile: bool | None = None,
) -> TokenStatistics:
    """Statistics of the tokens `labels`, from the hidden states that predict them.

    hidden: [N, D]. weight: [V, D] and bias: [V], the LM head, of hidden's dtype: z = hidden weight^T + bias,
    where a bias of -inf takes a token out of the vocabulary. labels: [N], int64; padding is for the caller to
    leave out. temperatures: K numbers. kept: which part of the vocabulary `kept_entropy` is taken over.

    Gradients flow from all statistics to hidden, weight and bias; rows without an upstream gradient
    cost nothing in the backward pass. What is not asked for costs nothing.

    Memory is that of one tile of `chunk` rows of logits, of three where nothing is compiled, and of the head's
    gradient in float32; the default chunk makes a tile about 32 MiB on the CPU, 512 MiB elsewhere. Gradients are
    accumulated in float32 or wider, and 16-bit products are never rounded to 16 bits: bf16 logits alone put 0.01
    nats of noise into the entropy. Autocast does not apply here.

    `compile` true runs the elementwise part through torch.compile, false never does, None decides by the
    size. Without a working C++ compiler it runs uncompiled, with the same numbers, only slower.

    Raises ValueError for shapes or dtypes that do not fit, labels outside [0, V), and temperatures that are
    not positive and finite; RuntimeError for a second derivative.
    """
    _check_operands(hidden, weight, bias, labels)
    _check_labels(labels, weight.shape[0])
    _check_temperatures(temperatures)
    require(chunk is None or chunk >= 1, "chunk", chunk, "a positive number of rows, or None")
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    if compile is None:
        compile = rows * vocabulary >= _COMPILE_FROM
    plan = _Plan(
        temperatures=(1.0, *map(float, temperatures)),
        entropy=entropy,
        kept=kept,
        chunk=chunk or _default_chunk(hidden.device, vocabulary),
        kernel=_COMPILED if compile else _EAGER,
    )
    fused: Callable[..., tuple[Tensor, Tensor | None, Tensor | None]] = _Fused.apply
    logprobs, exact, kept_entropy = fused(hidden, weight, bias, labels, plan)
    missing = logprobs.new_full((), math.nan).expand(rows)
    return TokenStatistics(
        logprobs=logprobs[0],
        entropy=missing if exact is None else exact,
        tempered=logprobs[1:],
        kept_entropy=missing if kept_entropy is None else kept_entropy,
    )


def logits_statistics(
    logits: Tensor, labels: Tensor, *, temperatures: Sequence[float] = (), kept: Kept | None = None
) -> TokenStatistics:
    """The same statistics from logits that exist already: a dozen lines of plain autograd.

    logits: [..., V], labels: [...], int64; the results are [...] and [K, ...], in float32 or wider. It is the
    reference that `token_statistics` is tested against, and enough for a small vocabulary.

    Raises ValueError as `token_statistics` does.
    """
    require(logits.is_floating_point() and logits.dim() > 0, "logits", _kind(logits), "floating, [..., V]")
    places = tuple(logits.shape[:-1])
    require(labels.shape == places, "labels", _kind(labels), f"of shape {places}")
    _check_labels(labels, logits.shape[-1])
    _check_temperatures(temperatures)
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    shifted = z - z.detach().amax(-1, keepdim=True)
    chosen = shifted.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    shifted = shifted.clamp_min(FLOOR)
    weights = shifted.exp()
    total = weights.sum(-1)
    tempered = [chosen / t - (shifted / t).exp().sum(-1).log() for t in temperatures]
    return TokenStatistics(
        logprobs=chosen - total.log(),
        entropy=total.log() - (weights * shifted).sum(-1) / total,
        tempered=torch.stack(tempered) if tempered else chosen.new_empty(0, *chosen.shape),
        kept_entropy=torch.full_like(chosen, math.nan) if kept is None else _kept_entropy(shifted, kept),
    )


def _kept_entropy(shifted: Tensor, kept: Kept) -> Tensor:
    inside = shifted >= kept.threshold(shifted.detach().flatten(0, -2)).view(*shifted.shape[:-1], 1)
    renormalised = shifted.masked_fill(~inside, FLOOR).log_softmax(-1)
    return -(renormalised.exp() * renormalised).sum(-1)


def sampled_entropy(logprobs: Tensor, mask: Tensor) -> Metric:
    """The one-sample estimate of the entropy, -log pi(y) of the sampled tokens y, as (total, count), nats.

    logprobs: log pi(y) at temperature 1, any shape; mask: the same shape, nonzero where a token counts.

    It is unbiased only if y was drawn from pi itself; for tokens drawn at another temperature, with top-p or
    from an older policy it measures a cross-entropy. It carries no gradient, on purpose: on-policy
    E[grad log pi(y)] = 0, so its naive gradient is noise of mean zero and no entropy bonus. For a bonus take
    the exact entropy of `token_statistics`.

    Raises ValueError if the shapes differ.
    """
    require(mask.shape == logprobs.shape, "mask", _kind(mask), f"of shape {tuple(logprobs.shape)}")
    return Metric.of(-logprobs.detach(), mask)


# What is refused.


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}"


def _check_operands(hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor) -> None:
    require(hidden.dim() == 2 and hidden.is_floating_point(), "hidden", _kind(hidden), "floating, [N, D]")
    rows, width = hidden.shape
    fits = weight.dim() == 2 and weight.shape[0] > 0 and weight.shape[1] == width
    wanted = f"{hidden.dtype} [V, {width}], to go with hidden"
    require(fits and weight.dtype == hidden.dtype, "weight", _kind(weight), wanted)
    if bias is not None:
        fits = bias.shape == weight.shape[:1] and bias.dtype == weight.dtype
        require(fits, "bias", _kind(bias), f"{weight.dtype} [{weight.shape[0]}], to go with weight")
    require(labels.shape == (rows,), "labels", _kind(labels), f"of shape [{rows}], one per row of hidden")


def _check_labels(labels: Tensor, vocabulary: int) -> None:
    require(labels.dtype == torch.int64, "labels", labels.dtype, "torch.int64")
    if labels.numel():
        low, high = torch.stack(labels.aminmax()).tolist()
        outside = low if low < 0 else high
        require(0 <= outside < vocabulary, "labels", outside, f"token ids in [0, {vocabulary})")


def _check_temperatures(temperatures: Sequence[float]) -> None:
    for temperature in temperatures:
        require(0 < temperature < math.inf, "temperatures", temperature, "positive, finite numbers")


# The elementwise work on one tile of logits: sums on the way forward, a gradient on the way back. Another
# statistic is one more sum and one more term here; another implementation is one more `_Kernel`.


class _Sums(NamedTuple):
    """What the forward pass keeps of each row: all that the backward pass needs beside the logits."""

    peak: Tensor  # [N] m
    totals: Tensor  # [1 + K, N] S_T, temperature 1 first
    moment: Tensor | None  # [N] M, when the entropy was asked for

    @classmethod
    def joined(cls, tiles: Sequence[_Sums]) -> _Sums:
        peaks, totals, moments = zip(*tiles, strict=True)
        return cls(torch.cat(peaks), torch.cat(totals, 1), None if moments[0] is None else torch.cat(moments))


def _reduce(
    z: Tensor, scratch: Sequence[Tensor], inverse: Tensor, entropy: bool, masked: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """[n, V] logits, [K] inverse temperatures -> the `_Sums` of n rows.

    scratch: a tile to work in, and then z is overwritten; empty leaves it to the compiler to need none.
    masked: logits may be -inf.
    """
    # A compiled sum on the CPU adds one term after the other, which loses 1e-5 at V = 32 000; eager ones are
    # pairwise and need no help, and there a float64 sum would first copy the tile.
    serial = torch.compiler.is_compiling() and z.device.type == "cpu"
    accumulator = torch.float64 if serial else z.dtype
    peak = z.amax(-1, keepdim=True)
    work = scratch[0] if scratch else None
    s = torch.sub(z, peak, out=z if scratch else None)
    if masked:
        s = s.clamp_min_(FLOOR)
    e = torch.exp(s, out=work)
    totals = [e.sum(-1, dtype=accumulator)]
    moment = torch.mul(e, s, out=work).sum(-1, dtype=accumulator) if entropy else None
    for k in range(inverse.shape[0]):
        totals.append(torch.mul(s, inverse[k], out=work).exp_().sum(-1, dtype=accumulator))
    return peak.squeeze(-1), torch.stack(totals), moment


def _differentiate(
    z: Tensor,
    scratch: Sequence[Tensor],
    peak: Tensor,
    inverse: Tensor,
    offset: Tensor,
    slope: Tensor | None,
    tempered: Tensor,
    masked: bool,
) -> None:
    """Overwrite [n, V] logits by the gradient that `_Slopes` describes, but for the label's own term.

    scratch: a tile to work in, and a second one if there are temperatures; or none at all.
    """
    first, second = (*scratch, None, None)[:2]
    s = z.sub_(peak.unsqueeze(-1))
    if masked:
        s = s.clamp_min_(FLOOR)
    rest = None
    for k in range(inverse.shape[0]):
        term = torch.mul(s, inverse[k], out=first if rest is None else second)
        term = term.exp_().mul_(tempered[k].unsqueeze(-1))
        rest = term if rest is None else rest.add_(term)
    if slope is None:
        z.exp_().mul_(offset.unsqueeze(-1))
    else:
        e = torch.exp(s, out=first if rest is None else second)
        z.mul_(slope.unsqueeze(-1)).add_(offset.unsqueeze(-1)).mul_(e)
    if rest is not None:
        z.add_(rest)


class _Compiled:
    """A function run through torch.compile; as it is, from the first failure to compile it on."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.compiled: Callable[..., Any] | None = None
        self.failed = False

    def __call__(self, *args: Any) -> Any:
        if self.failed:
            return self.function(*args)
        try:
            if self.compiled is None:
                self.compiled = torch.compile(self.function, dynamic=True)
            return self.compiled(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, no disk to build on, a backend's bug: none may end a run
            _log.info("torch.compile does not work here, token statistics run uncompiled: %s", error)
            self.failed = True
            return self.function(*args)


class _Kernel(NamedTuple):
    """One implementation of the elementwise work, called as `_reduce` and `_differentiate` are."""

    reduce: Callable[..., tuple[Tensor, Tensor, Tensor | None]]
    differentiate: Callable[..., None]
    scratch: bool  # works in tiles that it is given


_EAGER = _Kernel(_reduce, _differentiate, scratch=True)
_COMPILED = _Kernel(_Compiled(_reduce), _Compiled(_differentiate), scratch=False)


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


class _Plan(NamedTuple):
    """What is computed and how; temperature 1 comes first."""

    temperatures: tuple[float, ...]
    entropy: bool
    kept: Kept | None
    chunk: int
    kernel: _Kernel

    def temperatures_like(self, values: Tensor) -> Tensor:
        """[1 + K, 1], of the dtype and on the device of `values`."""
        return torch.tensor(self.temperatures, dtype=values.dtype, device=values.device).unsqueeze(1)

    def tiles(self, rows: int) -> list[slice]:
        """Slices of at most `chunk` rows and of about one size; none when there are no rows."""
        count = -(-rows // self.chunk)
        return [slice(rows * i // count, rows * (i + 1) // count) for i in range(count)]


def _default_chunk(device: torch.device, vocabulary: int) -> int:
    if device.type != "cpu":
        return max(_FEWEST_ROWS, _ACCELERATOR_LOGITS // vocabulary)
    return max(_FEWEST_ROWS, min(max(_GOOD_ROWS, _CACHED_LOGITS // vocabulary), _CPU_LOGITS // vocabulary))


def _wide(values: Tensor) -> Tensor:
    """One number per row is cheap, so arithmetic on those is in float64 where the device has it."""
    return values if values.device.type == "mps" else values.double()


def _statistics(chosen: Tensor, sums: _Sums, plan: _Plan) -> tuple[Tensor, Tensor | None]:
    """The labels' logits [N] and the sums -> log pi^T(label) [1 + K, N] and, if summed for, entropy [N]."""
    totals = _wide(sums.totals)
    logprobs = (_wide(chosen) - _wide(sums.peak)) / plan.temperatures_like(totals) - totals.log()
    if sums.moment is None:
        return logprobs.to(chosen.dtype), None
    return logprobs.to(chosen.dtype), (totals[0].log() - _wide(sums.moment) / totals[0]).to(chosen.dtype)


class _Slopes(NamedTuple):
    """The gradient of the loss L by a row of logits, as a few numbers per row:

        dL/dz_a = exp(s_a) (offset + slope s_a) + sum_k tempered_k exp(s_a / T_k) + label [a = y]

    which gathers, with p_T = exp(s / T) / S_T and weighted by the upstream gradients,

        d log pi^T(y)/dz = (onehot(y) - p_T) / T
        dH/dz            = -p (log p + H) = -exp(s) / S_1 (s - M / S_1)
    """

    offset: Tensor  # [N]
    slope: Tensor | None  # [N], when the entropy has a gradient
    tempered: Tensor  # [K, N]
    label: Tensor  # [N]

    @classmethod
    def of(cls, sums: _Sums, plan: _Plan, by_logprobs: Tensor, by_entropy: Tensor | None) -> _Slopes:
        dtype, totals = sums.peak.dtype, _wide(sums.totals)
        scaled = by_logprobs / plan.temperatures_like(totals)
        offset, tempered = -scaled[0] / totals[0], -scaled[1:] / totals[1:]
        slope = None
        if by_entropy is not None and sums.moment is not None:
            slope = -by_entropy / totals[0]
            offset = offset - slope * sums.moment / totals[0]
            slope = slope.to(dtype)
        return cls(offset.to(dtype), slope, tempered.to(dtype), scaled.sum(0).to(dtype))

    def at(self, rows: Tensor, temperatures: Tensor) -> _Slopes:
        """Those of some rows and some temperatures."""
        slope = None if self.slope is None else self.slope[rows]
        return _Slopes(self.offset[rows], slope, self.tempered[temperatures][:, rows], self.label[rows])


# The two passes, and the autograd function around them.


class _Upstream(NamedTuple):
    """The gradients of the loss by what `_Fused` returned; None where there is none."""

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
    plan: _Plan

    def room(self, rows: int, scratch: int) -> list[Tensor]:
        """A tile for the logits and `scratch` tiles to work in if the kernel wants them, for a whole pass.

        Taken and given back for every tile, they would fragment the heap to ten times their size.
        """
        shape = (min(rows, self.plan.chunk), self.head.weight.shape[0])
        tiles = 1 + scratch * self.plan.kernel.scratch
        return [self.hidden.new_empty(shape, dtype=self.head.dtype) for _ in range(tiles)]

    def forward(self) -> tuple[Tensor, _Sums, KeptSums | None]:
        """The label's logit [N] and the sums of every row."""
        chosen = self.hidden.new_empty(self.hidden.shape[0], dtype=self.head.dtype)
        inverse = self.plan.temperatures_like(chosen)[1:].reciprocal()
        masked = self.head.bias is not None
        room = self.room(len(chosen), 1)
        kept: list[KeptSums] = []

        def tile(rows: slice) -> _Sums:
            hidden = self.hidden[rows]
            z, *scratch = (space[: len(hidden)] for space in room)
            self.head.logits(hidden, z)
            chosen[rows] = z.gather(1, self.labels[rows].unsqueeze(1)).squeeze(1)
            if self.plan.kept is not None:
                kept.append(KeptSums.of(z, self.plan.kept))
            return _Sums(*self.plan.kernel.reduce(z, scratch, inverse, self.plan.entropy, masked))

        sums = _Sums.joined([tile(rows) for rows in self.plan.tiles(len(chosen)) or [slice(0)]])
        return chosen, sums, KeptSums(*map(torch.cat, zip(*kept, strict=True))) if kept else None

    def backward(self, sums: _Sums, kept: KeptSums | None, upstream: _Upstream, gradients: _Gradients) -> None:
        """Add up the gradients, over the rows and the temperatures that have an upstream gradient."""
        by_logprobs, by_entropy, by_kept = upstream
        live = by_logprobs != 0
        active = live.any(0)
        for by in (by_entropy, by_kept):
            active = active if by is None else active | (by != 0)
        index, used = active.nonzero().squeeze(1), live[1:].any(1).nonzero().squeeze(1)
        inverse = self.plan.temperatures_like(sums.peak)[1:].reciprocal()[used]
        slopes = _Slopes.of(sums, self.plan, by_logprobs, by_entropy)
        masked = self.head.bias is not None
        room = self.room(len(index), 1 + bool(len(used)))

        def tile(rows: Tensor) -> None:
            hidden = self.hidden[rows]
            z, *scratch = (space[: len(rows)] for space in room)
            self.head.logits(hidden, z)
            offset, slope, tempered, label = slopes.at(rows, used)
            inside = None
            if kept is not None and by_kept is not None:
                inside = kept.at(rows).gradient(z, sums.peak[rows], by_kept[rows])
            self.plan.kernel.differentiate(z, scratch, sums.peak[rows], inverse, offset, slope, tempered, masked)
            z.scatter_add_(1, self.labels[rows].unsqueeze(1), label.unsqueeze(1))
            if inside is not None:
                z.add_(inside)
            gradients.add(rows, z, hidden, self.head)

        for rows in self.plan.tiles(len(index)):
            tile(index[rows])


class _Fused(torch.autograd.Function):
    """hidden, weight, bias, labels, plan -> log pi^T(label) [1 + K, N]; entropy and kept entropy [N], None if not
    asked for.

    The backward pass makes each tile of logits a second time; between the passes only the sums are kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, plan: _Plan
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.autocast(hidden.device.type, enabled=False):
            chosen, sums, kept = _Passes(hidden, _Head.of(weight, bias), labels, plan).forward()
        ctx.plan = plan
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, bias, labels, *sums, *(kept or ()))
        return *_statistics(chosen, sums, plan), None if kept is None else kept.entropy()

    @staticmethod
    def backward(ctx: Any, by_logprobs: Tensor | None, by_entropy: Tensor | None, by_kept: Tensor | None) -> Any:
        if torch.is_grad_enabled():  # `once_differentiable` would return a constant, silently
            raise RuntimeError("token_statistics has no second derivative (create_graph=True was asked for)")
        hidden, weight, bias, labels, *saved = ctx.saved_tensors
        sums, rest = _Sums(*saved[:3]), saved[3:]
        if by_logprobs is None:
            by_logprobs = torch.zeros_like(sums.totals)
        with torch.autocast(hidden.device.type, enabled=False):
            head = _Head.of(weight, bias)
            gradients = _Gradients.zeros(hidden, head, ctx.needs_input_grad)
            upstream = _Upstream(by_logprobs, by_entropy, by_kept)
            passes = _Passes(hidden, head, labels, ctx.plan)
            passes.backward(sums, KeptSums(*rest) if rest else None, upstream, gradients)
        return *gradients, None, None  # cast to the dtypes of the inputs by autograd
