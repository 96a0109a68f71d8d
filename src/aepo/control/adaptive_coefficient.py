"""An entropy bonus that is on below the target, with a coefficient that steps: Skywork-OR1 and TRL (2505.22312)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from aepo.control.adapted import Adapted
from aepo.control.base import Measured, State
from aepo.control.laws import stepped
from aepo.control.schedules import Target
from aepo.errors import require
from aepo.types import Metric


@dataclass(frozen=True, kw_only=True)
class AdaptiveCoefficient(Adapted):
    """`AdaptiveCoefficient` is L - c 1[H below target] H_t; after each step c + delta where H is below, else c - delta.

    H is the previous step's entropy; `gate` says whether the first step has a bonus.

    State: `value` is c; `coefficient` is what the next step acts on, c or 0.
    """

    name: ClassVar[str] = "adaptive-coefficient"
    target: Target = Target("0.2")
    """Entropy below which the bonus is on, nats per token."""
    delta: float = 0.005
    """Size of a step of c."""
    high: float = 1.0
    """Largest c."""
    sensor: Literal["exact", "sampled"] = "exact"
    """`exact` entropy (TRL), or `sampled`, the mean of -log pi(y_t) (Skywork-OR1's code)."""
    comparison: Literal["strict", "inclusive"] = "inclusive"
    """Whether H = target counts as below: with `strict` (Skywork-OR1) it does not, with `inclusive` (TRL) it does."""
    gate: Literal["open", "closed"] = "closed"
    """Whether the first step, before anything is measured, has the bonus `start`: `open` (Skywork-OR1's code) it has,
    `closed` (TRL) it has not. With `start` 0 the two are the same.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low >= 0, "control.low", self.low, "0 or more")
        require(self.delta > 0, "control.delta", self.delta, "a positive number")

    def initial_state(self) -> State:
        """Return a state with the first c, which is the first step's bonus if the gate starts open."""
        first = self.start if self.gate == "open" else 0.0
        return {**super().initial_state(), "value": self.start, "coefficient": first}

    def reading(self, measured: Measured) -> float:
        """Return the exact or the sampled entropy of the ordinary rows, under the policy that sampled them."""
        if self.sensor == "exact":
            return measured.entropy.mean
        return Metric.of(-measured.scored.old.logprobs, measured.scored.ordinary).mean

    def aimed(self, step: int, first: float) -> float:
        """Return the target, nats per token."""
        return self.target.at(step, first)

    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Return c moved by one step, and the bonus that it gives."""
        below = error > 0 or (error == 0 and self.comparison == "inclusive")
        value = stepped(state["value"], 1.0 if below else -1.0, self.delta, self.low, self.high)
        return {"value": value, "coefficient": value if below else 0.0}
