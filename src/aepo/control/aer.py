"""AER: an entropy bonus for hard questions, scaled to hold a share of the first entropy (2510.10959)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.adapted import Adapted
from aepo.control.base import Scored, State
from aepo.control.laws import integrated
from aepo.control.schedules import Target
from aepo.control.tokens import group_accuracy
from aepo.errors import require
from aepo.types import BatchStatistics


@dataclass(frozen=True, kw_only=True)
class AER(Adapted):
    """`AER` is L - alpha lambda_q H_t. It is reconstructed: the paper's three parts are known, its equations are not.

        lambda_q = max(0, (rho - g) / rho)    g the share of right answers in the question's group    (reconstructed)
        H*       = tau * H_0                  H_0 the entropy of the first step, before any update
        alpha   <- clip(alpha + eta (H* - H), low, high)                                              (reconstructed)

    The values of rho, eta, start, low and high are ours.
    """

    name: ClassVar[str] = "aer"
    target: Target = Target("0.4x")
    """H*: the entropy to hold, nats per token. The default has the paper's best tau, 0.4."""
    rho: float = 0.5
    """Share of right answers in a group from which a question gets no bonus: the difficulty threshold."""
    allocation: Literal["linear", "step", "uniform"] = "linear"
    """How the bonus depends on g: `linear` as above; `step`, 1 where g < rho, else 0; `uniform`, 1 for every question.
    """
    eta: float = 2e-3
    """Change of alpha per nat of error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low >= 0, "control.low", self.low, "0 or more")
        require(0 < self.rho <= 1, "control.rho", self.rho, "a share of right answers in (0, 1]")
        require(self.eta >= 0, "control.eta", self.eta, "a coefficient per nat, 0 or more")

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return lambda_q of each token's question."""
        return {"allocation": self._allocated(group_accuracy(scored.batch))[:, None] * scored.batch.mask}

    def _allocated(self, accuracy: Tensor) -> Tensor:
        if self.allocation == "uniform":
            return torch.ones_like(accuracy)
        if self.allocation == "step":
            return (accuracy < self.rho).float()
        return ((self.rho - accuracy) / self.rho).clamp(min=0)

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return -alpha * lambda_q * H_t, or None while alpha is 0."""
        bonus = super().penalty(scored, new, state)
        return None if bonus is None else scored.marks["allocation"] * bonus

    def aimed(self, step: int, first: float) -> float:
        """Return H*, nats per token."""
        return self.target.at(step, first)

    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Return alpha after integral control."""
        return {"coefficient": integrated(state["coefficient"], error, self.eta, self.low, self.high)}
