"""Entropy over a kept part of the vocabulary.

    A = {a : z_a >= threshold}                 the kept tokens of one position, a constant of the gradient
    p(a) = exp(z_a) / sum_{b in A} exp(z_b)    renormalised
    H_A = -sum_{a in A} p(a) log p(a)          nats
    dH_A/dz_a = -p(a) (log p(a) + H_A) on A, 0 elsewhere

Which part is kept is a `Kept`: a row's threshold, from its logits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from aepo.checks import require

# Stands for -inf: exp(FLOOR / T) is 0 at any sane T, and 0 * FLOOR is 0 where 0 * -inf is NaN.
FLOOR = -1e20


class Kept(ABC):
    """A part of the vocabulary, chosen anew at each position."""

    @abstractmethod
    def threshold(self, z: Tensor) -> Tensor:
        """The least kept logit of each row; [n, V] -> [n, 1]. Logits equal to it are kept, too."""


@dataclass(frozen=True)
class Clamped(Kept):
    """All but the `int(V * removed)` smallest logits: AEnt's clamped entropy (2509.03493), by count, not by mass."""

    removed: float

    def __post_init__(self) -> None:
        require(0 <= self.removed < 1, "removed", self.removed, "a share of the vocabulary in [0, 1)")

    def threshold(self, z: Tensor) -> Tensor:
        """The (int(V * removed) + 1)-th smallest logit."""
        return z.kthvalue(int(z.shape[-1] * self.removed) + 1, dim=-1, keepdim=True).values


@dataclass(frozen=True)
class Nucleus(Kept):
    """The fewest most probable tokens whose probability reaches `mass`, and at most `most` of them.

    SIREN's top-p entropy (2509.25133; mass 0.8, capped at 10 000 tokens).
    """

    mass: float = 0.8
    most: int = 10_000

    def __post_init__(self) -> None:
        require(0 < self.mass <= 1, "mass", self.mass, "a probability in (0, 1]")
        require(self.most >= 1, "most", self.most, "at least 1 token")

    def threshold(self, z: Tensor) -> Tensor:
        """The logit of the last token of the nucleus."""
        top = z.topk(min(self.most, z.shape[-1]), dim=-1).values
        probs = (top - z.logsumexp(-1, keepdim=True)).exp()
        inside = (probs.cumsum(-1) - probs < self.mass).sum(-1, keepdim=True)
        return top.gather(-1, inside.clamp(min=1) - 1)


class KeptSums(NamedTuple):
    """What the forward pass keeps of each row, [N] each: the threshold, and over A with s = z - peak
    sum exp(s) and sum exp(s) s."""

    threshold: Tensor
    total: Tensor
    moment: Tensor

    @classmethod
    def of(cls, z: Tensor, kept: Kept) -> KeptSums:
        """[n, V] logits -> the sums of n rows."""
        threshold = kept.threshold(z)
        s, e = _inside(z, z.amax(-1, keepdim=True), threshold)
        return cls(threshold.squeeze(-1), e.sum(-1), (e * s).sum(-1))

    def entropy(self) -> Tensor:
        """log S - M / S, [N]."""
        return self.total.log() - self.moment / self.total

    def gradient(self, z: Tensor, peak: Tensor, upstream: Tensor) -> Tensor:
        """dL/dz [n, V] from dL/dH_A [n]; `peak` [n] is the row's largest logit."""
        s, e = _inside(z, peak.unsqueeze(-1), self.threshold.unsqueeze(-1))
        mean = (self.moment / self.total).unsqueeze(-1)
        return e.mul_(s.sub_(mean)).mul_((-upstream / self.total).unsqueeze(-1))

    def at(self, rows: Tensor) -> KeptSums:
        """Those of some rows."""
        return KeptSums(*(values[rows] for values in self))


def _inside(z: Tensor, peak: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """s = z - peak and exp(s), both 0 outside the kept part; s is finite also for logits of -inf."""
    kept = z >= threshold
    s = torch.where(kept, (z - peak).clamp_min(FLOOR), 0.0)
    return s, torch.where(kept, s.exp(), 0.0)
