"""An entropy bonus that is on below the target and whose size steps up and down: Skywork-OR1 and TRL (2505.22312)."""

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
    """L - c 1[H below target] H_t, and after each step c + delta where H is below, c - delta where it is not.

    H is the previous step's entropy, so the first step has no bonus. start: c before the first step. delta: the size
    of a step of c. sensor: `exact` entropy (TRL), or `sampled`, the mean of -log pi(y_t) (Skywork-OR1's code).
    comparison: whether H = target counts as below: not if `strict` (Skywork-OR1), it does if `inclusive` (TRL).
    State: `value` is c; `coefficient` is what the next step acts on, c or 0.
    """

    name: ClassVar[str] = "adaptive-coefficient"
    target: Target = Target("0.2")
    delta: float = 0.005
    high: float = 1.0
    sensor: Literal["exact", "sampled"] = "exact"
    comparison: Literal["strict", "inclusive"] = "inclusive"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low >= 0, "control.low", self.low, "0 or more")
        require(self.delta > 0, "control.delta", self.delta, "a positive number")

    def initial_state(self) -> State:
        """c_0, and no bonus."""
        return {**super().initial_state(), "value": self.start, "coefficient": 0.0}

    def reading(self, measured: Measured) -> float:
        """The exact entropy, or its one-sample estimate, of the ordinary rows under the policy that sampled them."""
        if self.sensor == "exact":
            return measured.entropy.mean
        return Metric.of(-measured.scored.old.logprobs, measured.scored.ordinary).mean

    def aimed(self, step: int, first: float) -> float:
        """The target, nats per token."""
        return self.target.at(step, first)

    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Step c, and gate it."""
        below = error > 0 or (error == 0 and self.comparison == "inclusive")
        value = stepped(state["value"], 1.0 if below else -1.0, self.delta, self.low, self.high)
        return {"value": value, "coefficient": value if below else 0.0}
