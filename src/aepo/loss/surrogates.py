"""Surrogates (what is maximised at a token) and aggregates (how tokens are averaged).

loss = sum over tokens of weight * (-surrogate(ratio, advantage) + penalty), where `weight` is the aggregate of
the whole minibatch. Microbatches use slices of the same weights, so their size never changes the gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.errors import require
from aepo.types import Metric


@dataclass(frozen=True)
class Bounds:
    """The ratio is clipped to [1 - low, 1 + high]; each a number or one for each token, [B, T]."""

    low: Tensor | float
    high: Tensor | float


class Surrogate(ABC):
    """A per-token objective, maximised. `bounds`, where given, stand in for its own clip bounds."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """ratio = pi / pi_old and advantages, both [B, T] -> objective [B, T]."""

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Which tokens get no gradient, bool [B, T]."""
        return torch.zeros_like(ratio, dtype=torch.bool)


@dataclass(frozen=True)
class Ratio(Surrogate):
    """r * A: the policy gradient with an importance ratio and no clip (what KL-Cov builds on)."""

    name: ClassVar[str] = "ratio"

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """r * A."""
        return ratio * advantages


@dataclass(frozen=True)
class Clip(Surrogate):
    """PPO's clip, min(r A, clip(r, 1 - low, 1 + high) A) (1707.06347), with separate bounds (DAPO, 2503.14476).

    `dual`, when set, bounds the objective from below by dual * A for A < 0 (dual clip, 1912.09729; verl and
    EasyR1 use 3.0).
    """

    name: ClassVar[str] = "clip"
    low: float = 0.2
    high: float = 0.2
    dual: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "surrogate.low", self.low, "a number in (0, 1]")
        require(self.high > 0, "surrogate.high", self.high, "a positive number")
        require(self.dual is None or self.dual > 1, "surrogate.dual", self.dual, "a number above 1, or none")

    def __call__(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """min(r A, clip(r) A), then max with dual * A where A < 0."""
        low, high = self._range(ratio, bounds)
        objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
        if self.dual is None:
            return objective
        return torch.where(advantages < 0, torch.maximum(objective, self.dual * advantages), objective)

    def clipped(self, ratio: Tensor, advantages: Tensor, bounds: Bounds | None = None) -> Tensor:
        """Moved beyond the bound in the direction that the advantage favours, or dual-clipped."""
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


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """exp(d) - 1 - d with d = log pi_ref(y) - log pi(y), nats, of any shape; gradient through `logprobs` alone.

    For y drawn from pi it is an unbiased estimate of KL(pi || pi_ref), and never negative (Schulman, "Approximating
    KL divergence", 2020; GRPO, 2402.03300, eq. 4). Its gradient by log pi(y) is 1 - exp(d).
    """
    difference = ref_logprobs.detach() - logprobs
    return difference.exp() - 1 - difference


AggregateFunction = Callable[[Tensor], Tensor]


def token_mean(mask: Tensor) -> Tensor:
    """Every token of the minibatch weighs the same: m / sum(m) (DAPO, verl's default, AEPO's code)."""
    return mask / mask.sum().clamp(min=1)


def sequence_mean_token_mean(mask: Tensor) -> Tensor:
    """Every completion weighs the same, and its tokens share that: m / len / B (GRPO's paper form)."""
    lengths = mask.sum(-1, keepdim=True)
    rows = (lengths > 0).sum().clamp(min=1)
    return mask / lengths.clamp(min=1) / rows


def sequence_mean_token_sum(mask: Tensor) -> Tensor:
    """Sum over a completion's tokens, mean over completions: m / B."""
    rows = (mask.sum(-1) > 0).sum().clamp(min=1)
    return mask / rows


def fixed_length(mask: Tensor) -> Tensor:
    """m / (B * T), T the longest completion of the step, so that length is neither rewarded nor punished.

    Dr. GRPO (2503.20783) divides by a constant instead, so its scale does not follow the longest completion.
    """
    rows = (mask.sum(-1) > 0).sum().clamp(min=1)
    return mask / rows / max(mask.shape[1], 1)


AGGREGATES: dict[str, AggregateFunction] = {
    "token-mean": token_mean,
    "sequence-mean-token-mean": sequence_mean_token_mean,
    "sequence-mean-token-sum": sequence_mean_token_sum,
    "fixed-length": fixed_length,
}


@dataclass(frozen=True)
class LossOutput:
    """The loss of some rows, and what a log wants to know of it (over tokens, no gradient)."""

    loss: Tensor
    ratio: Metric
    clipped: Metric
    approximate_kl: Metric


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    surrogate: Surrogate,
    penalty: Tensor | None = None,
    bounds: Bounds | None = None,
) -> LossOutput:
    """Sum of weights * (-surrogate + penalty).

    All are [B, T]; `weights` is the aggregate of the minibatch that these rows belong to and is 0 outside the
    mask; gradient flows through `logprobs` and `penalty` alone. `approximate_kl` is the k3 estimate of
    KL(pi_old || pi), nats per token.
    """
    mask = weights > 0
    # Padding holds zeros in both; where keeps a NaN outside the mask from reaching the gradient.
    log_ratio = torch.where(mask, logprobs - old_logprobs.detach(), 0.0)
    ratio = log_ratio.exp()
    per_token = -surrogate(ratio, advantages.detach(), bounds)
    if penalty is not None:
        per_token = per_token + penalty
    loss = (weights * torch.where(mask, per_token, 0.0)).sum()
    with torch.no_grad():
        return LossOutput(
            loss=loss,
            ratio=Metric.of(ratio, mask),
            clipped=Metric.of(surrogate.clipped(ratio, advantages, bounds).float(), mask),
            approximate_kl=Metric.of(ratio - 1 - log_ratio, mask),
        )
