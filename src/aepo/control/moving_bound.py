"""Moving bound: the upper clip bound holds the entropy (MAI-Thinking-1, June 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aepo.control.base import Control, Measured, Scored, State
from aepo.control.closed_loop import at_targets, compared, followed
from aepo.control.laws import Law, stepped
from aepo.control.schedules import Target
from aepo.errors import require
from aepo.loss.surrogates import Bounds
from aepo.types import BatchStatistics


@dataclass(frozen=True, kw_only=True)
class MovingBound(Control):
    """`MovingBound` clips the ratio pi / pi_old to [1 - eps, 1 / (1 - eps) + k], and moves k after each step.

        k <- clip(k + delta * sign(target - H), 0, k_max)

    Too little entropy raises the bound, so that rare tokens with a positive advantage may grow further. Too much
    entropy lowers it, down to the bound that is symmetric in log pi. k starts at 0 (the source gives no start).

    State: `coefficient` is k; with a law also its `command` and what it remembers, `law`.
    """

    name: ClassVar[str] = "moving-bound"
    acts_off_policy = True
    target: Target = Target("0.3")
    """Entropy to hold, nats per token."""
    eps: float = 0.6
    """Distance of the lower clip bound from 1."""
    k_max: float = 2.5
    """Largest k."""
    delta: float = 0.25
    """Change of k in a step."""
    law: Law | None = None
    """A law that moves k in place of the steps: from 0 at command -1 to k_max at 1. None keeps the own rule."""

    def __post_init__(self) -> None:
        require(0 < self.eps < 1, "control.eps", self.eps, "a number in (0, 1)")
        require(self.k_max >= 0, "control.k_max", self.k_max, "a number, 0 or more")
        require(self.delta >= 0, "control.delta", self.delta, "a number, 0 or more")

    def initial_state(self) -> State:
        """Return a state with k = 0 and nothing measured."""
        return {"coefficient": 0.0, "first_entropy": None}

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds:
        """Return [1 - eps, 1 / (1 - eps) + k] as distances from 1."""
        return Bounds(low=self.eps, high=1 / (1 - self.eps) + state["coefficient"] - 1)

    def update(self, state: State, measured: Measured) -> State:
        """Move k one step towards the wanted entropy, or as the law says."""
        known = compared(state, self.target, measured.entropy.mean, measured.step)
        if known is None:
            return state
        if self.law is None:
            return {**known, "coefficient": stepped(state["coefficient"], known["error"], self.delta, 0.0, self.k_max)}
        bands = at_targets(self.target.at, measured.step, known["first_entropy"])
        changed = followed(self.law, state, bands, measured.entropy.mean, measured.entropy_se, acted=-1.0)
        return {**known, **changed, "coefficient": self.k_max * (1 + changed["command"]) / 2}
