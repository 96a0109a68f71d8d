"""This module chooses the part of the vocabulary over which a second entropy, the kept entropy, is taken.

    A = {a : z_a >= threshold}                 the kept tokens of one position, a constant of the gradient
    p(a) = exp(z_a) / sum_{b in A} exp(z_b)    renormalised
    H_A = -sum_{a in A} p(a) log p(a)          nats
    dH_A/dz_a = -p(a) (log p(a) + H_A) on A, 0 elsewhere
    log p(y)                                   of the sampled token y; FLOOR if y is not in A

A `Kept` decides which tokens are kept: it returns the threshold of each row of logits.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.entropy.transform import LogitTransform
from aepo.errors import require

FLOOR = -1e20
"""A number that stands for -inf: exp(FLOOR / T) is 0 at any sane T, and 0 * FLOOR is 0 where 0 * -inf is NaN."""
# Most nuclei are small. `Nucleus` sorts this many of the largest logits first, and more only where that is too few.
_FIRST_LOOKS = (64, 1024)


class Kept(ABC):
    """`Kept` chooses a part of the vocabulary, separately at each position."""

    @abstractmethod
    def threshold(self, z: Tensor, transform: LogitTransform | None = None) -> Tensor:
        """Return the smallest kept value of each row, [n, 1]. Values that are equal to it are kept, too.

        A transform keeps the order of the values, so the threshold is one of the values before it.

        Args:
            z: The logits, [n, V], before the transform if there is one.
            transform: What makes the logits; None if z holds them.
        """


@dataclass(frozen=True)
class Clamped(Kept):
    """`Clamped` keeps all but the `int(V * removed)` smallest logits, by count, not by probability mass.

    AEnt's clamped entropy uses it (2509.03493).
    """

    removed: float
    """The share of the vocabulary that is removed, in [0, 1)."""

    def __post_init__(self) -> None:
        require(0 <= self.removed < 1, "removed", self.removed, "a share of the vocabulary in [0, 1)")

    def threshold(self, z: Tensor, transform: LogitTransform | None = None) -> Tensor:
        """Return the (int(V * removed) + 1)-th smallest logit of each row, [n, 1]."""
        rank = int(z.shape[-1] * self.removed) + 1
        if z.device.type != "cpu":
            return z.kthvalue(rank, dim=-1, keepdim=True).values
        # All rows at once would take as much memory as a tile and fragment the heap.
        return torch.cat([_smallest(rows, rank) for rows in z.split(torch.get_num_threads())])


def _smallest(z: Tensor, rank: int) -> Tensor:
    """Return the rank-th smallest logit of each row, [n, 1].

    On the CPU this takes 0.6 of the time of kthvalue and 0.1 of the time of a sort.
    """
    most = z.shape[-1] + 1 - rank
    if rank < most:
        return z.topk(rank, largest=False, sorted=False).values.amax(-1, keepdim=True)
    return z.topk(most, sorted=False).values.amin(-1, keepdim=True)


@dataclass(frozen=True)
class Nucleus(Kept):
    """`Nucleus` keeps the most probable tokens: as few as reach the probability `mass`, and at most `most`.

    SIREN's top-p entropy uses it (2509.25133; mass 0.8, at most 10 000 tokens).
    """

    mass: float = 0.8
    """The probability that the kept tokens reach together, in (0, 1]."""
    most: int = 10_000
    """The largest number of kept tokens."""

    def __post_init__(self) -> None:
        require(0 < self.mass <= 1, "mass", self.mass, "a probability in (0, 1]")
        require(self.most >= 1, "most", self.most, "at least 1 token")

    def threshold(self, z: Tensor, transform: LogitTransform | None = None) -> Tensor:
        """Return the logit of the least probable token of each row's nucleus, [n, 1]."""
        most = min(self.most, z.shape[-1])
        logits: Callable[[Tensor], Tensor] = transform or (lambda values: values)
        log_total = logits(z).logsumexp(-1, keepdim=True)
        least = torch.empty_like(log_total)
        rows = torch.arange(len(z), device=z.device)
        for count in (*(few for few in _FIRST_LOOKS if few < most), most):
            top = (z if len(rows) == len(z) else z[rows]).topk(count).values
            probs = (logits(top) - log_total[rows]).exp()
            inside = (probs.cumsum(-1) - probs < self.mass).sum(-1, keepdim=True)
            least[rows] = top.gather(-1, inside.clamp(min=1) - 1)
            rows = rows[inside.squeeze(-1) == count]
            if not len(rows):
                break
        return least


@dataclass(frozen=True)
class MinP(Kept):
    """`MinP` keeps the tokens whose probability is at least `share` of the largest probability.

    Lp-Reg's proxy distribution uses it (2510.03222; share 0.02).
    """

    share: float = 0.02
    """The smallest probability of a kept token, as a share of the largest one, in (0, 1]."""

    def __post_init__(self) -> None:
        require(0 < self.share <= 1, "share", self.share, "a share of the largest probability in (0, 1]")

    def threshold(self, z: Tensor, transform: LogitTransform | None = None) -> Tensor:
        """Return the largest logit + log share of each row, [n, 1], as an output of the LM head."""
        most = z.amax(-1, keepdim=True)
        if transform is None:
            return most + math.log(self.share)
        return transform.inverse(transform(most) + math.log(self.share))
