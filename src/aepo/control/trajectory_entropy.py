"""A constraint on the entropy of whole trajectories, after TECRL (2511.11592), carried over to language models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.adapted import Adapted
from aepo.control.base import Measured, Scored, State
from aepo.control.laws import integrated
from aepo.control.tokens import entropy_to_go, masked_mean
from aepo.errors import require
from aepo.types import Metric


@dataclass(frozen=True, kw_only=True)
class TrajectoryEntropy(Adapted):
    """`TrajectoryEntropy` holds S_i = sum_t gamma^t H_t, the discounted entropy of a completion (nats), at a budget B.

        A_t    + alpha * (sum_{l > t} gamma^(l - t) H_l - baseline)      H of the sampling policy, no gradient
        L      - alpha * H_t
        alpha <- clip(alpha + rate * (B - mean_i S_i), low, high)

    The two terms are those of grad E[S] = E[sum_t gamma^t grad H_t + sum_t grad log pi(y_t) sum_{l > t} gamma^l H_l],
    without the weight gamma^t of a token's place. A negative `low` makes the control two-sided. It is reconstructed:
    TECRL's critics are replaced by the sums, the numbers are ours.
    """

    name: ClassVar[str] = "trajectory-entropy"
    gamma: float = 0.9
    """Discount for each token; 1 lets S grow with length, so that a low S asks for long completions."""
    budget: float = 1.0
    """B, as a multiple of the first measured mean S."""
    rate: float = 5e-4
    """Change of alpha per nat of error."""
    baseline: Literal["group", "position"] = "group"
    """`group`: the mean entropy-to-go of the group's tokens. `position`: the mean of the batch's tokens at the same
    place.
    """
    to_go: bool = True
    """Whether advantages get the entropy that is still to come; false leaves the direct term alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.gamma <= 1, "control.gamma", self.gamma, "a discount in [0, 1]")
        require(self.budget > 0, "control.budget", self.budget, "a positive multiple of the first measured S")
        require(self.rate >= 0, "control.rate", self.rate, "a coefficient per nat, 0 or more")

    def reading(self, measured: Measured) -> float:
        """Return the mean S of the ordinary completions, nats per completion."""
        scored = measured.scored
        entropy, mask = scored.entropy, scored.ordinary
        trajectory = (entropy + entropy_to_go(entropy, mask, self.gamma))[:, 0]
        return Metric.of(trajectory, mask[:, 0]).mean

    def aimed(self, step: int, first: float) -> float:
        """Return B, nats per completion."""
        return self.budget * first

    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Return alpha after dual ascent."""
        return {"coefficient": integrated(state["coefficient"], error, self.rate, self.low, self.high)}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return A + alpha * (entropy-to-go - baseline)."""
        alpha: float = state["coefficient"]
        if not self.to_go or not alpha:
            return advantages
        to_go = entropy_to_go(scored.entropy, scored.batch.mask, self.gamma)
        return advantages + alpha * (to_go - self._baseline(to_go, scored)) * scored.trained

    def _baseline(self, to_go: Tensor, scored: Scored) -> Tensor:
        """Return the mean over a group's, or a position's, trained tokens; [B, 1] or [1, T]."""
        mask = scored.trained
        if self.baseline == "position":
            return (to_go * mask).sum(0, keepdim=True) / mask.sum(0, keepdim=True).clamp(min=1)
        groups = scored.batch.groups
        means = torch.zeros_like(to_go[:, :1])
        for group in groups.unique():
            members = groups == group
            means[members] = masked_mean(to_go[members], mask[members])
        return means
