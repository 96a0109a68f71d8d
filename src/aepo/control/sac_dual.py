"""SAC's temperature as the coefficient of an entropy bonus: dual ascent on its logarithm (1812.05905)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from aepo.control.adapted import Adapted
from aepo.control.base import State
from aepo.control.laws import integrated
from aepo.control.schedules import Target
from aepo.errors import require


@dataclass(frozen=True, kw_only=True)
class SACDual(Adapted):
    """`SACDual` is L - alpha H_t, with log alpha <- log alpha + rate * (target - H), and alpha within [low, high].

    This is the descent of J(alpha) = E[-alpha log pi - alpha Hbar] (1812.05905, Eq. 18) on log alpha, as SAC's codes
    write it. alpha stays positive, so it acts from the first step on and can only push entropy up. It is carried over
    from continuous control; all numbers are ours.
    """

    name: ClassVar[str] = "sac-dual"
    target: Target = Target("0.5")
    """Entropy to hold, nats per token."""
    rate: float = 0.1
    """Change of log alpha per nat of error."""
    start: float = 1e-3
    """alpha of the first step."""
    low: float = 1e-5
    """Smallest alpha; positive, because alpha is kept as a logarithm."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.low > 0, "control.low", self.low, "a positive number: alpha is kept as a logarithm")
        require(self.high < math.inf, "control.high", self.high, "a finite number")
        require(self.rate > 0, "control.rate", self.rate, "a positive number (change of log alpha per nat)")

    def aimed(self, step: int, first: float) -> float:
        """Return the target, nats per token."""
        return self.target.at(step, first)

    def at_command(self, command: float) -> float:
        """Return alpha at a command: along its logarithm."""
        return self.low * math.exp(math.log(self.high / self.low) * (1 + command) / 2)

    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Return alpha after a step of dual ascent on log alpha."""
        before, low, high = (math.log(alpha) for alpha in (state["coefficient"], self.low, self.high))
        after = math.exp(integrated(before, error, self.rate, low, high))
        return {"coefficient": min(max(after, self.low), self.high)}
