"""Surrogates: the objective that is maximised at each token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.errors import require


@dataclass(frozen=True)
class Bounds:
    """`Bounds` limits the ratio pi / pi_old to [1 - low, 1 + high]."""

    low: Tensor | float
    """Distance of the lower limit from 1: one number, or one for each token, [B, T]."""
    high: Tensor | float
    """Distance of the upper limit from 1: one number, or one for each token, [B, T]."""


class Surrogate(ABC):
    """`Surrogate` is the objective of a token, which is maximised."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the objective of each token, [B, T].

        Args:
            ratio: pi / pi_old, [B, T].
            advantages: [B, T].
            bounds: Limits that replace the surrogate's own clip bounds.
        """

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens get no gradient, bool [B, T]. The arguments are those of a call."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass(frozen=True)
class Ratio(Surrogate):
    """`Ratio` maximises r * A with r = pi / pi_old: an importance ratio without a clip, as in KL-Cov."""

    name: ClassVar[str] = "ratio"

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return r * A."""
        return ratio * advantages


@dataclass(frozen=True)
class Clip(Surrogate):
    """`Clip` maximises PPO's min(r A, clip(r, 1 - low, 1 + high) A) with separate bounds.

    Sources: 1707.06347 (PPO), 2503.14476 (DAPO, separate bounds).
    """

    name: ClassVar[str] = "clip"
    low: float = 0.2
    """Distance of the lower clip bound from 1: the ratio is clipped below 1 - low."""
    high: float = 0.2
    """Distance of the upper clip bound from 1: the ratio is clipped above 1 + high."""
    dual: float | None = None
    """Bound of the dual clip (1912.09729): where A < 0, the objective is at least dual * A. verl and EasyR1 use 3.0.
    None means that there is no dual clip.
    """

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "surrogate.low", self.low, "a number in (0, 1]")
        require(self.high > 0, "surrogate.high", self.high, "a positive number")
        require(self.dual is None or self.dual > 1, "surrogate.dual", self.dual, "a number above 1, or none")

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return min(r A, clip(r) A), and where A < 0 at least dual * A."""
        low, high = self._range(ratio, bounds)
        objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens are beyond the bound in the direction that the advantage favours, or are dual-clipped."""
        low, high = self._range(ratio, bounds)
        beyond = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        if self.dual is None:
            return beyond
        return beyond | ((advantages < 0) & (ratio > self.dual))

    def _range(self, ratio: Tensor, bounds: Bounds | None) -> tuple[Tensor, Tensor]:
        bounds = bounds or Bounds(self.low, self.high)
        low, high = (torch.as_tensor(value, dtype=ratio.dtype) for value in (bounds.low, bounds.high))
        return 1 - low.to(ratio.device), 1 + high.to(ratio.device)


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Clip, Ratio)}
