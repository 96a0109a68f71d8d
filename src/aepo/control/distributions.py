"""Target distributions: where AEPO's extra positives come from.

REINFORCE on positives drawn from pi* pulls the policy towards pi* conditioned on being right. The paper takes pi* =
pi^T; any transformed policy with a wanted property works too (v6, closing remark). A new distribution is one class: it
says how to draw proposals, and how much a proposal counts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.base import Scored
from aepo.errors import require
from aepo.types import Rollout


class TargetDistribution(ABC):
    """`TargetDistribution` is pi*(o|q), proportional to proposal(o|q) * exp(log_weight(o)).

    In every method `direction` is +1 when more of the quantity that is held is wanted, and -1 when less is wanted.
    """

    name: ClassVar[str]
    candidates: ClassVar[int] = 1
    """How many right proposals are drawn for each one that is chosen by its weight. 1 draws no more than are used."""
    two_sided: ClassVar[bool] = True
    """Whether the direction matters, so that a law can steer by it."""

    @abstractmethod
    def temperature(self, direction: int) -> float:
        """Return the temperature at which proposals are drawn from pi."""

    def log_weight(self, rollout: Rollout, direction: int) -> float:
        """Return the log of target over proposal for a completion, up to a constant; 0 when they are the same."""
        return 0.0

    def statistics(self, direction: int) -> tuple[float, ...]:
        """Return the temperatures at which `log_ratio` needs log-probabilities."""
        return ()

    @abstractmethod
    def log_ratio(self, scored: Scored, direction: int) -> Tensor:
        """Return the log of pi* / pi at each token of ordinary completions, [B, T], for importance weighting."""


@dataclass(frozen=True)
class Temperature(TargetDistribution):
    """`Temperature` is pi^T = softmax(logits / T): T = high when entropy is under the target, T = low when it is above.

    Source: 2510.08141 (T = 1.2 / 0.8). `log_ratio` is token-local, as in DCPO (2601.12730): it reweights each token
    given its prefix, and the prefixes stay those of T = 1.
    """

    name: ClassVar[str] = "temperature"
    high: float = 1.5
    """Temperature of the positives while the entropy is under the target."""
    low: float = 0.67
    """Temperature of the positives while the entropy is above the target."""

    def __post_init__(self) -> None:
        require(self.low > 0, "distribution.low", self.low, "a positive temperature")
        require(self.high >= self.low, "distribution.high", self.high, f"at least distribution.low ({self.low})")

    def temperature(self, direction: int) -> float:
        """Return `high` to raise entropy and `low` to lower it."""
        return self.high if direction > 0 else self.low

    def statistics(self, direction: int) -> tuple[float, ...]:
        """Return the temperature itself."""
        return (self.temperature(direction),)

    def log_ratio(self, scored: Scored, direction: int) -> Tensor:
        """Return log pi^T(y_t) - log pi(y_t)."""
        return scored.old.tempered[self.temperature(direction)] - scored.old.logprobs


@dataclass(frozen=True)
class ByLength(TargetDistribution):
    """`ByLength` is pi(o|q) * exp(direction * |o| / scale): longer or shorter correct completions, as the law asks."""

    name: ClassVar[str] = "length"
    candidates: ClassVar[int] = 3
    scale: float = 2.0
    """Number of tokens: a completion that is longer by this number weighs more or less by a factor of e."""

    def __post_init__(self) -> None:
        require(self.scale > 0, "distribution.scale", self.scale, "a positive number of tokens")

    def temperature(self, direction: int) -> float:
        """Return 1, because the proposals are ordinary completions."""
        return 1.0

    def log_weight(self, rollout: Rollout, direction: int) -> float:
        """Return direction * |o| / scale."""
        return direction * len(rollout.completion.tokens) / self.scale

    def log_ratio(self, scored: Scored, direction: int) -> Tensor:
        """Return direction * |o| / scale on every token, with mean weight 1 in the group's correct completions."""
        batch = scored.batch
        log_weight = direction * batch.mask.sum(-1) / self.scale
        normalised = torch.zeros_like(log_weight)
        for group in batch.groups.unique():
            members = batch.groups == group
            correct = members & batch.right
            if correct.any():
                mean = log_weight[correct].logsumexp(0) - correct.sum().log()
                normalised[members] = log_weight[members] - mean
        return normalised[:, None] * batch.mask


@dataclass(frozen=True)
class Shorter(ByLength):
    """`Shorter` is pi(o|q) * exp(-|o| / scale): shorter correct completions (the paper's own example of another pi*).

    The direction plays no part, so it needs the law `constant`.
    """

    name: ClassVar[str] = "shorter"
    two_sided: ClassVar[bool] = False

    def log_weight(self, rollout: Rollout, direction: int) -> float:
        """Return -|o| / scale."""
        return super().log_weight(rollout, -1)

    def log_ratio(self, scored: Scored, direction: int) -> Tensor:
        """Return -|o| / scale on every token, with mean weight 1 in the group's correct completions."""
        return super().log_ratio(scored, -1)


DISTRIBUTIONS: dict[str, type[TargetDistribution]] = {cls.name: cls for cls in (Temperature, ByLength, Shorter)}
