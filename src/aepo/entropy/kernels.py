"""The elementwise work on one tile of logits: sums on the way forward, a gradient on the way back.

Another statistic is one more sum and one more term here; another implementation is one more `Kernel`. There are
three: eager, through torch.compile, and Triton's (`aepo.entropy.triton`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from aepo.entropy.partial import FLOOR

_log = logging.getLogger(__name__)

# Fewer logits than this in one call, and compiling (seconds, once) is left out: it would gain milliseconds.
_COMPILE_FROM = 2**24

Reduced = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]


class Kernel(NamedTuple):
    """One implementation of the elementwise work, called as `reduce` and `differentiate` are."""

    reduce: Callable[..., Reduced]
    differentiate: Callable[..., None]
    scratch: bool  # works in tiles that it is given


def choose(device: torch.device, logits: int, compile: bool | None) -> Kernel:
    """The kernel for so many logits; `compile` as in `token_statistics`."""
    if compile is None and device.type == "cuda":
        return _TRITON
    return _COMPILED if (logits >= _COMPILE_FROM if compile is None else compile) else _EAGER


def reduce(
    z: Tensor, scratch: Sequence[Tensor], inverse: Tensor, threshold: Tensor | None, entropy: bool, masked: bool
) -> Reduced:
    """[n, V] logits, [K] inverse temperatures, [n, 1] least kept logits -> sums of n rows, with s = z - peak.

    peak: [n]. totals: [1 + K, n], sum exp(s / T), T = 1 first. moment: [n], sum exp(s) s, if `entropy`. With a
    threshold, below: [n], the largest logit under it, and kept: [2, n], the total and the moment over the rest.

    scratch: a tile to work in, two if there is a threshold, and then z is overwritten; empty leaves it to the
    compiler to need none. masked: logits may be -inf.
    """
    # A compiled sum on the CPU adds one term after the other, which loses 1e-5 at V = 32 000; eager ones are
    # pairwise and need no help, and there a float64 sum would first copy the tile.
    serial = torch.compiler.is_compiling() and z.device.type == "cpu"
    accumulator = torch.float64 if serial else z.dtype
    first, second = (*scratch, None, None)[:2]
    peak = z.amax(-1, keepdim=True)
    below = kept = inside = None
    if threshold is not None:
        inside = torch.ge(z, threshold, out=second).to(z.dtype)
        below = torch.mul(inside, FLOOR, out=first).add_(z).amax(-1)
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
) -> None:
    """Overwrite [n, V] logits by

        exp(s) (offset + slope s) + sum_k tempered_k exp(s / T_k) + exp(s) (inside_0 + inside_1 s) [z >= cut]

    peak, offset, slope and cut: [n]. inverse: [K]. tempered: [K, n]. inside: [2, n], with a cut.

    scratch: a tile to work in, one more if there is a cut, one more if there are temperatures; or none at all.
    """
    first, second = (*scratch, None, None)[:2]
    last = scratch[-1] if scratch else None
    among = None if cut is None else torch.ge(z, cut.unsqueeze(-1), out=second).to(z.dtype)
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


class _Fallible:
    """A faster form of a function, made at the first call; the function itself from the first failure on."""

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
        except Exception as error:  # no compiler, no disk to build on, a backend's bug: none may end a run
            _log.info("token statistics run uncompiled, for this does not work here: %s", error)
            self.failed = True
            return self.function(*args)


def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _triton(function: Callable[..., Any]) -> Callable[..., Any]:
    from aepo.entropy import triton as kernels_triton  # here, because Triton is optional and takes a second to import

    made: Callable[..., Any] = getattr(kernels_triton, function.__name__)
    return made


_EAGER = Kernel(reduce, differentiate, scratch=True)
_COMPILED = Kernel(_Fallible(reduce, _compile), _Fallible(differentiate, _compile), scratch=False)
_TRITON = Kernel(_Fallible(reduce, _triton), _Fallible(differentiate, _triton), scratch=False)
