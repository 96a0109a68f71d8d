"""Surrogates: the objective that is maximised at each token."""

from __future__ import annotations

import math
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

    @property
    def idle_at_ratio_one(self) -> bool:
        """Return whether its settings, or it as a whole, do nothing while the ratio is 1, as with one update per
        rollout.
        """
        return False

    @abstractmethod
    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return the objective of each token, [B, T].

        Args:
            ratio: pi / pi_old, [B, T].
            advantages: [B, T].
            bounds: Limits that replace the surrogate's own clip bounds.
        """

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens a clip leaves no gradient, or a limited one, bool [B, T].

        The arguments are those of a call.
        """
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
        _require_dual(self.dual)

    @property
    def idle_at_ratio_one(self) -> bool:
        """Return whether there is a setting beyond PPO's one bound: these act only where the ratio has moved."""
        return self.high != self.low or self.dual is not None

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return min(r A, clip(r) A), and where A < 0 at least dual * A."""
        low, high = _range(ratio, bounds or Bounds(self.low, self.high))
        objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens are beyond the bound in the direction that the advantage favours, or are dual-clipped."""
        low, high = _range(ratio, bounds or Bounds(self.low, self.high))
        beyond = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        return beyond | _dual_clipped(ratio, advantages, self.dual)


@dataclass(frozen=True)
class GradientPreservingClip(Surrogate):
    """`GradientPreservingClip` is a clip that leaves a limited gradient beyond its bounds, as in CE-GPPO (2509.20712).

        A < 0 and r < 1 - low:    beta1 (1 - low) A r / sg(r)      gradient by log pi: beta1 (1 - low) A
        A > 0 and r > 1 + high:   beta2 (1 + high) A r / sg(r)     gradient by log pi: beta2 (1 + high) A
        else:                     r A                              gradient by log pi: r A

    sg(r) is r without gradient. `clipped` says which tokens are beyond a bound, although they keep a gradient.
    """

    name: ClassVar[str] = "gradient-preserving-clip"
    low: float = 0.2
    """Distance of the lower bound from 1."""
    high: float = 0.2
    """Distance of the upper bound from 1."""
    beta1: float = 0.75
    """Gradient of wrong tokens (A < 0) below the lower bound, as a multiple of (1 - low) A; 0 is PPO's clip."""
    beta2: float = 1.0
    """Gradient of right tokens (A > 0) above the upper bound, as a multiple of (1 + high) A; 0 is PPO's clip."""
    dual: float | None = 10.0
    """Bound of the dual clip: a token with A < 0 and a ratio above it gets no gradient. None means no dual clip."""

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "surrogate.low", self.low, "a number in (0, 1]")
        require(0 < self.high < math.inf, "surrogate.high", self.high, "a positive number")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            require(0 <= value < math.inf, f"surrogate.{field}", value, "a finite number, 0 or more")
        _require_dual(self.dual)

    @property
    def idle_at_ratio_one(self) -> bool:
        """Return True: at a ratio of 1 no token is beyond a bound."""
        return True

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return r A, with the limited forms beyond the bounds, and where A < 0 at least dual * A."""
        low, high = _range(ratio, bounds or Bounds(self.low, self.high))
        # 1, with the gradient of log pi. The smallest float keeps a ratio of 0 from giving NaN.
        same = ratio / ratio.detach().clamp_min(torch.finfo(ratio.dtype).tiny)
        objective = torch.where((advantages < 0) & (ratio < low), self.beta1 * low * same, ratio)
        objective = torch.where((advantages > 0) & (ratio > high), self.beta2 * high * same, objective) * advantages
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Return which tokens are beyond the bound in the direction that the advantage favours, or are dual-clipped."""
        low, high = _range(ratio, bounds or Bounds(self.low, self.high))
        beyond = ((advantages > 0) & (ratio > high)) | ((advantages < 0) & (ratio < low))
        return beyond | _dual_clipped(ratio, advantages, self.dual)


def _range(ratio: Tensor, bounds: Bounds) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest ratio that the bounds allow."""
    low, high = (torch.as_tensor(value, dtype=ratio.dtype) for value in (bounds.low, bounds.high))
    return 1 - low.to(ratio.device), 1 + high.to(ratio.device)


def _dual_clipped(ratio: Tensor, advantages: Tensor, dual: float | None) -> Tensor:
    if dual is None:
        return torch.zeros_like(ratio, dtype=torch.bool)
    return (advantages < 0) & (ratio > dual)


def _require_dual(dual: float | None) -> None:
    require(dual is None or dual > 1, "surrogate.dual", dual, "a number above 1, or none")


SURROGATES: dict[str, type[Surrogate]] = {cls.name: cls for cls in (Clip, Ratio, GradientPreservingClip)}
