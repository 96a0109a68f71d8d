"""This module does the elementwise work on one tile of logits.

The forward pass takes sums, `reduce`; the backward pass makes a gradient, `differentiate`. A new statistic needs one
more sum and one more term here. A new implementation is one more `Kernel`. There are three kernels: eager,
torch.compile, and Triton (`aepo.entropy.triton`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aepo.entropy.partial import FLOOR
from aepo.entropy.transform import LogitTransform

_log = logging.getLogger(__name__)

# A call with fewer logits than this is not compiled: compiling takes seconds, once, and would save milliseconds.
_COMPILE_FROM = 2**24

Reduced = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Kernel(NamedTuple):
    """`Kernel` is one implementation of the elementwise work."""

    reduce: Callable[..., Reduced]
    """The forward pass, with the arguments and results of `reduce` in this module."""
    differentiate: Callable[..., None]
    """The backward pass, with the arguments of `differentiate` in this module."""
    scratch: bool
    """Whether the caller gives the kernel scratch tiles to work in."""


def choose(device: torch.device, logits: int, compile: bool | None) -> Kernel:
    """Return the kernel to use.

    Args:
        device: The device of the logits.
        logits: The number of logits in the whole call.
        compile: The argument `compile` of `aepo.entropy.statistics.token_statistics`.
    """
    if compile is None and device.type == "cuda":
        return _TRITON
    return _COMPILED if (logits >= _COMPILE_FROM if compile is None else compile) else _EAGER


def reduce(
    z: Tensor,
    scratch: Sequence[Tensor],
    inverse: Tensor,
    threshold: Tensor | None,
    entropy: bool,
    masked: bool,
    transform: LogitTransform | None = None,
) -> Reduced:
    """Return the sums of each row of a tile of logits. In the formulas, s = z - peak.

    Args:
        z: The output of the LM head, [n, V]; `transform` makes the logits of it. It is overwritten if there is scratch.
        scratch: Tiles [n, V] to work in: one, or two if there is a threshold. An empty sequence is for compiled code,
            which needs none.
        inverse: The inverse temperatures 1 / T, [K].
        threshold: The smallest kept value of each row, [n, 1], before the transform; None if no kept entropy was asked
            for.
        entropy: Whether the moment is taken.
        masked: Whether a logit may be -inf.
        transform: What makes the logits; None if z holds them.

    Returns:
        peak: The largest logit, [n].
        totals: sum exp(s / T), [1 + K, n], with T = 1 first.
        moment: sum exp(s) s, [n]; None without `entropy`.
        below: The largest value under the threshold, [n], before the transform; None without a threshold.
        kept: The total and the moment over the kept logits, [2, n]; None without a threshold.
    """
    # A compiled sum on the CPU adds the terms one after the other and loses 1e-5 at V = 32 000, so it adds in float64.
    # Eager sums are pairwise and exact enough; there a float64 sum would first copy the tile.
    serial = torch.compiler.is_compiling() and z.device.type == "cpu"
    accumulator = torch.float64 if serial else z.dtype
    first, second = (*scratch, None, None)[:2]
    below = kept = inside = None
    if threshold is not None:
        inside = torch.ge(z, threshold, out=second).to(z.dtype)
        below = torch.mul(inside, FLOOR, out=first).add_(z).amax(-1)
    if transform is not None:
        z = transform(z, out=z if scratch else None)
    peak = z.amax(-1, keepdim=True)
    s = torch.sub(z, peak, out=z if scratch else None)
    if masked:
        s = s.clamp_min_(FLOOR)
    e = torch.exp(s, out=first)
    totals = [e.sum(-1, dtype=accumulator)]
    if inside is not None:
        inside = inside.mul_(e)
        total = inside.sum(-1, dtype=accumulator)
        kept = torch.stack([total, inside.mul_(s).sum(-1, dtype=accumulator)])
    moment = torch.mul(e, s, out=first).sum(-1, dtype=accumulator) if entropy else None
    for k in range(inverse.shape[0]):
        totals.append(torch.mul(s, inverse[k], out=first).exp_().sum(-1, dtype=accumulator))
    return peak.squeeze(-1), torch.stack(totals), moment, below, kept


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
    """Overwrite a tile of the LM head's output y with the gradient of the loss with respect to it.

    With the logits z and s = z - peak, the gradient is

        exp(s) (offset + slope s) + sum_k tempered_k exp(s / T_k) + exp(s) (inside_0 + inside_1 s) [y >= cut]

    times 1 - tanh^2(scale y / softcap) if there is a soft cap. The caller puts the factor `scale` into the sum's own
    factors.

    Args:
        z: The output of the LM head, [n, V]; the gradient on return.
        scratch: Tiles [n, V] to work in: one, one more if there is a cut, one more if there are temperatures, and one
            more if there is a soft cap. An empty sequence is for compiled code, which needs none.
        peak: The largest logit of each row, [n].
        inverse: The inverse temperatures 1 / T_k, [K].
        offset: [n].
        slope: [n]; None if the entropy has no gradient.
        tempered: [K, n].
        cut: The value of y from which on a logit is kept, [n]; None if the kept entropy has no gradient.
        inside: [2, n]; None if the kept entropy has no gradient.
        masked: Whether a logit may be -inf.
        transform: What makes the logits; None if z holds them.
    """
    capped = transform is not None and transform.softcap is not None
    scratch, own = (scratch[:-1], scratch[-1]) if capped and scratch else (scratch, None)
    flat = None
    first, second = (*scratch, None, None)[:2]
    last = scratch[-1] if scratch else None
    among = None if cut is None else torch.ge(z, cut.unsqueeze(-1), out=second).to(z.dtype)
    if transform is not None and transform.softcap is not None:
        t = transform.bounded(z, out=z)
        flat = torch.mul(t, t, out=own).neg_().add_(1)
        z.mul_(transform.softcap)
    elif transform is not None:
        z.mul_(transform.scale)
    s = z.sub_(peak.unsqueeze(-1))
    if masked:
        s = s.clamp_min_(FLOOR)
    rest = None
    for k in range(inverse.shape[0]):
        term = torch.mul(s, inverse[k], out=first if k else last)
        term = term.exp_().mul_(tempered[k].unsqueeze(-1))
        rest = term if rest is None else rest.add_(term)
    if among is not None and inside is not None:
        factor = torch.mul(among, inside[1].unsqueeze(-1), out=first)
        factor = (factor if slope is None else factor.add_(slope.unsqueeze(-1))).mul_(s)
        factor.add_(among.mul_(inside[0].unsqueeze(-1)).add_(offset.unsqueeze(-1)))
    elif slope is not None:
        factor = torch.mul(s, slope.unsqueeze(-1), out=first).add_(offset.unsqueeze(-1))
    else:
        factor = offset.unsqueeze(-1)
    z.exp_().mul_(factor)
    if rest is not None:
        z.add_(rest)
    if flat is not None:
        z.mul_(flat)


class _Fallible:
    """`_Fallible` calls a faster form of a function, which it makes at the first call.

    When the faster form fails, this call and all later ones go to the function itself.
    """

    def __init__(self, function: Callable[..., Any], make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        self.function, self.make = function, make
        self.made: Callable[..., Any] | None = None
        self.failed = False

    def __call__(self, *args: Any) -> Any:
        if self.failed:
            return self.function(*args)
        try:
            if self.made is None:
                self.made = self.make(self.function)
            return self.made(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # no compiler, no disk space, a backend's bug: a run must survive them
            _log.info("token statistics run uncompiled, for this does not work here: %s", error)
            self.failed = True
            return self.function(*args)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _triton(function: Callable[..., Any]) -> Callable[..., Any]:
    from aepo.entropy import triton as kernels_triton  # imported late: Triton is optional and takes a second to import

    made: Callable[..., Any] = getattr(kernels_triton, function.__name__)
    return made


_EAGER = Kernel(reduce, differentiate, scratch=True)
_COMPILED = Kernel(_Fallible(reduce, _compile), _Fallible(differentiate, _compile), scratch=False)
_TRITON = Kernel(_Fallible(reduce, _triton), _Fallible(differentiate, _triton), scratch=False)
