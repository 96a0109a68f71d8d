"""AEnt: a bonus on the clamped entropy, with a coefficient that integral control moves (2509.03493)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.adapted import require_limits
from aepo.control.base import Control, Measured, Needs, Scored, State
from aepo.control.closed_loop import followed
from aepo.control.laws import Law, integrated, outside
from aepo.entropy.partial import Clamped
from aepo.errors import require
from aepo.types import BatchStatistics, Metric, asked_for


@dataclass(frozen=True, kw_only=True)
class AEnt(Control):
    """`AEnt` is L - lambda H~, a bonus on the clamped entropy H~.

        lambda <- clip(lambda - beta [min(0, H~ - H_low) + max(0, H~ - H_high)], low, high)

    H~ is the entropy of the policy renormalised over all but the `removed` share of least logits. The defaults are
    those that the author lists for Qwen2.5-Math-1.5B on MATH.

    State: `coefficient` is lambda; with a law also its `command` and what it remembers, `law`.
    """

    name: ClassVar[str] = "aent"
    removed: float = 0.3
    """p: the share of the vocabulary, by count, that is left out. The tokens with the least logits are left out."""
    start: float = 2e-4
    """lambda_0: the coefficient, which acts from the first step on."""
    entropy_low: float = 0.05
    """H_low: lower end of the band in which lambda rests, nats per token."""
    entropy_high: float = 0.23
    """H_high: upper end of the band in which lambda rests, nats per token."""
    rate: float = 1e-3
    """beta: change of lambda per nat outside the band."""
    low: float = 1e-5
    """Smallest lambda."""
    high: float = 3e-3
    """Largest lambda."""
    warmup: int = 0
    """Steps before lambda may move."""
    adapt: bool = True
    """Whether lambda moves; false keeps it at `start`."""
    law: Law | None = None
    """A law that moves lambda in place of the rule above: from `low` at command -1 to `high` at 1. None keeps the
    rule.
    """

    def __post_init__(self) -> None:
        require(0 <= self.removed < 1, "control.removed", self.removed, "a share of the vocabulary in [0, 1)")
        require_limits(self.start, self.low, self.high)
        require(self.low >= 0, "control.low", self.low, "0 or more")
        require(self.entropy_low >= 0, "control.entropy_low", self.entropy_low, "a number of nats, 0 or more")
        ordered = self.entropy_low <= self.entropy_high
        require(ordered, "control.entropy_high", self.entropy_high, f"at least entropy_low, {self.entropy_low}")
        require(self.rate > 0, "control.rate", self.rate, "a positive number (coefficient per nat)")
        require(self.warmup >= 0, "control.warmup", self.warmup, "a number of steps, 0 or more")
        require(self.law is None or self.adapt, "control.law", self.law and self.law.name, "none with adapt false")

    def initial_state(self) -> State:
        """Return a state with lambda_0."""
        return {"coefficient": self.start}

    def needs(self, state: State) -> Needs:
        """Ask for the clamped entropy."""
        return Needs(kept=Clamped(self.removed))

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return -lambda * H~_t."""
        coefficient: float = state["coefficient"]
        return -coefficient * asked_for(new.kept_entropy)

    def update(self, state: State, measured: Measured) -> State:
        """Move lambda by the mean clamped entropy of the ordinary rows.

        `error` in the state is how far that entropy is outside the band, nats per token.
        """
        scored = measured.scored
        entropy = Metric.of(asked_for(scored.old.kept_entropy), scored.ordinary).mean
        if math.isnan(entropy):
            return state
        band = (self.entropy_low, self.entropy_high)
        error = outside(entropy, *band)
        coefficient: float = state["coefficient"]
        if not self.adapt or measured.step < self.warmup:
            return {**state, "error": error}
        if self.law is None:
            coefficient = integrated(coefficient, error, self.rate, self.low, self.high)
            return {**state, "error": error, "coefficient": coefficient}
        span = self.high - self.low
        acted = 2 * (coefficient - self.low) / span - 1 if span else 0.0
        changed = followed(self.law, state, (band, band, band), entropy, math.nan, acted)
        return {**state, "error": error, **changed, "coefficient": self.low + span * (1 + changed["command"]) / 2}
