"""STEER: tokens weigh less the more their update is estimated to change the entropy (2510.10150)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from aepo.control.base import Control, Scored, State
from aepo.errors import require
from aepo.types import BatchStatistics, asked_for

# Nats times advantages. The exponential map never reads a batch's largest change as smaller (the authors' code).
LEAST_PEAK = 0.02


def entropy_change(advantages: Tensor, old: BatchStatistics) -> Tensor:
    """Return Omega_t = A_t (1 - pi(y_t)) (log pi(y_t) + H_t), [B, T]; its negative is how the update moves H_t.

    This is the paper's (A / pi_old) pi (1 - pi) (log pi + H) at pi = pi_old: to first order and up to the learning
    rate, a policy gradient step moves the sampled token's logit by A (1 - pi), and dH/dz_y = -pi (log pi + H).
    """
    return advantages * -torch.expm1(old.logprobs) * (old.logprobs + asked_for(old.entropy))


@dataclass(frozen=True, kw_only=True)
class STEER(Control):
    """`STEER` is A_t * w(|Omega_t|), with Omega_t the estimated change of the entropy (`entropy_change`).

    2510.10150. The weights come from the range of |Omega| over the batch's trained tokens. The largest |Omega| counts
    as at least 0.02 in the exponential map. Statistics are the sampling policy's.
    """

    name: ClassVar[str] = "steer"
    weighting: Literal["linear", "exponential"] = "linear"
    """`linear`: from `high` at the smallest |Omega| of the batch down to `low` at the largest; where all are equal, the
    middle of the two. `exponential`: exp(-k |Omega|), k such that the largest gets `low`: 1 where nothing changes,
    never above.
    """
    low: float = 0.8
    """Weight of the token with the largest |Omega|."""
    high: float = 1.2
    """Weight of the token with the smallest |Omega|, for `linear`."""

    def __post_init__(self) -> None:
        require(0 < self.low <= 1, "control.low", self.low, "a number in (0, 1]")
        require(1 <= self.high < math.inf, "control.high", self.high, "a finite number, 1 or more")

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return A_t times its weight."""
        trained = scored.trained.bool()
        if not trained.any():
            return advantages
        change = entropy_change(advantages, scored.old).abs()
        return advantages * torch.where(trained, self._weights(change, change[trained]), 1.0)

    def _weights(self, change: Tensor, among: Tensor) -> Tensor:
        """Return the weights of all tokens, from the range of the trained ones."""
        least, peak = among.min(), among.max()
        if self.weighting == "exponential":
            return (change * (math.log(self.low) / peak.clamp(min=LEAST_PEAK))).exp()
        if least == peak:
            return torch.full_like(change, (self.low + self.high) / 2)
        return self.high - (self.high - self.low) * (change - least) / (peak - least)
