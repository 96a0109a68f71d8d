"""This module holds the base class of controls with an entropy bonus whose coefficient follows the error."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aepo.control.base import Control, Measured, Needs, Scored, State
from aepo.control.closed_loop import at_targets, followed
from aepo.control.laws import Law
from aepo.errors import require
from aepo.types import BatchStatistics, asked_for


@dataclass(frozen=True, kw_only=True)
class Adapted(Control):
    """`Adapted` makes the loss L - coefficient * H, with the gradient of the exact entropy H.

    The coefficient changes once after each step, by the control's own rule or by a law.
    State: `first_entropy` (the first reading, None before there is one), `target_entropy`, `error` (both in the unit of
    `reading`) and `coefficient`; with a law also its `command` and what it remembers, `law`.
    """

    start: float = 0.0
    """Coefficient of the first step."""
    low: float = 0.0
    """Smallest coefficient."""
    high: float = 0.03
    """Largest coefficient."""
    law: Law | None = None
    """A law that moves the coefficient in place of the control's own rule: from `low` at command -1 to `high` at 1.
    None keeps the own rule.
    """

    def __post_init__(self) -> None:
        require_limits(self.start, self.low, self.high)

    @abstractmethod
    def aimed(self, step: int, first: float) -> float:
        """Return the target in the unit of `reading`.

        Args:
            step: The number of the step.
            first: The first reading of the run.
        """

    @abstractmethod
    def adapted(self, state: State, error: float) -> Mapping[str, Any]:
        """Return what changes in the state after a step, at least `coefficient`.

        Args:
            state: The state that the step acted on.
            error: Target minus reading, in the unit of `reading`.
        """

    def reading(self, measured: Measured) -> float:
        """Return the entropy that the coefficient follows, nats per token."""
        return measured.entropy.mean

    def reading_se(self, measured: Measured) -> float:
        """Return the standard error of `reading` in its unit; NaN if it is not known."""
        plain = type(self).reading is Adapted.reading
        return measured.entropy_se if plain else math.nan

    def at_command(self, command: float) -> float:
        """Return the coefficient at a command of the law, from -1 to 1."""
        return self.low + (self.high - self.low) * (1 + command) / 2

    def initial_state(self) -> State:
        """Return a state with the first coefficient and no reading."""
        return {"coefficient": self.start, "first_entropy": None}

    def needs(self, state: State) -> Needs:
        """Return that the entropy is needed with its gradient."""
        return Needs(entropy_gradient=True)

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return -coefficient * H_t, or None while the coefficient is 0."""
        return -state["coefficient"] * asked_for(new.entropy) if state["coefficient"] else None

    def update(self, state: State, measured: Measured) -> State:
        """Return the state with the next coefficient. A step that measured nothing (NaN) changes nothing."""
        entropy = self.reading(measured)
        if math.isnan(entropy):
            return state
        first = entropy if state["first_entropy"] is None else state["first_entropy"]
        target = self.aimed(measured.step, first)
        error = target - entropy
        known = {"first_entropy": first, "target_entropy": target, "error": error}
        if self.law is None:
            return {**state, **known, **self.adapted(state, error)}
        bands = at_targets(self.aimed, measured.step, first)
        changed = followed(self.law, state, bands, entropy, self.reading_se(measured), acted=-1.0)
        return {**state, **known, **changed, "coefficient": self.at_command(changed["command"])}


def require_limits(start: float, low: float, high: float) -> None:
    """Raise `InvalidValue` unless low <= start <= high."""
    require(low <= high, "control.low", low, f"at most high, {high}")
    require(low <= start <= high, "control.start", start, f"from low to high, {low} to {high}")
