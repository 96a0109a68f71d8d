"""BAPO: clip bounds that are searched until right answers have their share of the update (2510.18927)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from aepo.control.base import Control, Scored, State
from aepo.errors import require
from aepo.loss.surrogates import Bounds
from aepo.types import BatchStatistics

# The authors' code limits log pi - log pi_old to this, in nats.
LARGEST = 20.0
# Keeps a rounding error in repeated additions of the step from adding one more step.
TOLERANCE = 1e-9


@dataclass(frozen=True, kw_only=True)
class BAPO(Control):
    """`BAPO` clips the ratio r to [c_low, c_high], which it searches anew in each pass of the update (2510.18927).

        E+  = sum_t A_t min(r_t, c_high)   over A_t >= 0          rho = E+ / E-
        E-  = sum_t -A_t max(r_t, c_low)   over A_t < 0

    The search begins at (low_start, high_start). While rho is below `balance`, it raises c_low by `step` up to
    `low_max`, and then c_high by `step` up to `high_max`. A higher c_low leaves out wrong tokens that have become
    unlikely, and a higher c_high takes in right tokens that have become likely. A_t are the advantages after `shape`.
    """

    name: ClassVar[str] = "bapo"
    acts_off_policy = True
    balance: float = 1.0
    """The rho at which the search stops. 1.0: right answers have the share 0.5 of the sum of E+ and E-."""
    low_start: float = 0.6
    """First lower bound of the ratio."""
    low_max: float = 0.9
    """Largest lower bound of the ratio."""
    high_start: float = 1.2
    """First upper bound of the ratio."""
    high_max: float = 3.0
    """Largest upper bound of the ratio."""
    step: float = 0.05
    """Change of a bound in one step of the search."""

    def __post_init__(self) -> None:
        require(0 < self.balance < math.inf, "control.balance", self.balance, "a finite, positive number")
        require(0 < self.low_start <= 1, "control.low_start", self.low_start, "a ratio in (0, 1]")
        wanted = f"a ratio from low_start ({self.low_start}) to 1"
        require(self.low_start <= self.low_max <= 1, "control.low_max", self.low_max, wanted)
        require(1 < self.high_start < math.inf, "control.high_start", self.high_start, "a finite ratio above 1")
        wanted = f"a finite ratio, high_start ({self.high_start}) or more"
        require(self.high_start <= self.high_max < math.inf, "control.high_max", self.high_max, wanted)
        # A search of at most 1000 steps: the bounds of the authors need 42.
        least = max(self.low_max - self.low_start, self.high_max - self.high_start) / 1000
        require(
            self.step > 0 and self.step >= least, "control.step", self.step, f"a positive number, {least:g} or more"
        )

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds:
        """Return the bounds that the search finds for this microbatch, as distances from 1."""
        ratio = (new.logprobs.detach() - scored.old.logprobs).clamp(-LARGEST, LARGEST).exp()
        advantages = scored.batch.advantages * scored.batch.mask
        right, wrong = advantages.clamp(min=0), -advantages.clamp(max=0)

        def balanced(low: float, high: float) -> bool:
            gain, loss = (right * ratio.clamp(max=high)).sum().item(), (wrong * ratio.clamp(min=low)).sum().item()
            return gain >= self.balance * loss

        low = self._raised(self.low_start, self.low_max, lambda low: balanced(low, self.high_start))
        high = self._raised(self.high_start, self.high_max, lambda high: balanced(low, high))
        return Bounds(low=1 - low, high=high - 1)

    def _raised(self, start: float, most: float, reached: Callable[[float], bool]) -> float:
        """Return the first of start, start + step, ... that reaches the balance, or `most`."""
        value = start
        while value < most - TOLERANCE and not reached(value):
            value = min(value + self.step, most)
        return value
