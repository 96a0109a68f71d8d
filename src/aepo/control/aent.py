"""AEnt: a bonus on the clamped entropy, its coefficient held inside a band by integral control (2509.03493)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.adapted import require_limits
from aepo.control.base import Control, Measured, Needs, Scored, State
from aepo.control.laws import integrated, outside
from aepo.entropy.partial import Clamped
from aepo.errors import require
from aepo.types import Metric, TokenStats


@dataclass(frozen=True, kw_only=True)
class AEnt(Control):
    """L - lambda H~, H~ the entropy of the policy renormalised over all but the `removed` share of least logits.

        lambda <- clip(lambda - beta [min(0, H~ - H_low) + max(0, H~ - H_high)], low, high)

    removed: p, a share of the vocabulary by count. start: lambda_0, acting from the first step on. entropy_low,
    entropy_high: the band, nats per token, in which lambda rests. rate: beta, coefficient per nat. warmup: steps
    before lambda may move. adapt=False keeps it at `start`. The defaults are those that the author lists for
    Qwen2.5-Math-1.5B on MATH.
    """

    name: ClassVar[str] = "aent"
    removed: float = 0.3
    start: float = 2e-4
    entropy_low: float = 0.05
    entropy_high: float = 0.23
    rate: float = 1e-3
    low: float = 1e-5
    high: float = 3e-3
    warmup: int = 0
    adapt: bool = True

    def __post_init__(self) -> None:
        require(0 <= self.removed < 1, "control.removed", self.removed, "a share of the vocabulary in [0, 1)")
        require_limits(self.start, self.low, self.high)
        require(self.low >= 0, "control.low", self.low, "0 or more")
        require(self.entropy_low >= 0, "control.entropy_low", self.entropy_low, "a number of nats, 0 or more")
        ordered = self.entropy_low <= self.entropy_high
        require(ordered, "control.entropy_high", self.entropy_high, f"at least entropy_low, {self.entropy_low}")
        require(self.rate > 0, "control.rate", self.rate, "a positive number (coefficient per nat)")
        require(self.warmup >= 0, "control.warmup", self.warmup, "a number of steps, 0 or more")

    def initial_state(self) -> State:
        """lambda_0."""
        return {"coefficient": self.start}

    def needs(self, state: State) -> Needs:
        """The clamped entropy."""
        return Needs(kept=Clamped(self.removed))

    def penalty(self, scored: Scored, new: TokenStats, state: State) -> Tensor:
        """-lambda * H~_t."""
        assert new.kept_entropy is not None
        coefficient: float = state["coefficient"]
        return -coefficient * new.kept_entropy

    def update(self, state: State, measured: Measured) -> State:
        """lambda follows the mean clamped entropy of the ordinary rows; `error` is how far that is outside the band."""
        scored = measured.scored
        assert scored.old.kept_entropy is not None
        entropy = Metric.of(scored.old.kept_entropy, scored.ordinary).mean
        if math.isnan(entropy):
            return state
        error = outside(entropy, self.entropy_low, self.entropy_high)
        coefficient: float = state["coefficient"]
        if self.adapt and measured.step >= self.warmup:
            coefficient = integrated(coefficient, error, self.rate, self.low, self.high)
        return {**state, "error": error, "coefficient": coefficient}
