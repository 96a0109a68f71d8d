"""The base class of controls that measure the entropy, compare it with a target and command an actuator."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from aepo.control import variates
from aepo.control.base import Control, ControlReport, Measured, State
from aepo.control.laws import PI, Band, Constant, Law, Proportional, Seen, Switch, outside
from aepo.control.quantities import Entropy, Quantity, TokenShare
from aepo.control.schedules import Target
from aepo.control.self_tuning import SelfTuning
from aepo.entropy.standard_error import standard_error
from aepo.errors import require
from aepo.types import Metric

LAWS: dict[str, type[Law]] = {cls.name: cls for cls in (SelfTuning, PI, Switch, Proportional, Constant)}
"""Every law by name."""

ALARM_AFTER = 20
"""Steps in a row with the command at its limit after which the run raises an alarm, unless the error shrank."""
ALARM_ERROR = 0.1
"""Smallest error that raises an alarm, nats per token."""
ALARM_ESTIMATE = 0.03
"""The same where the law estimates the entropy: the error is then that of the estimate, which has less noise."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoop(Control):
    """`ClosedLoop` is the base class of controls that measure the entropy, compare it with a target and set a command.

    The first step measures and has no command. The command that step k acts on comes from the entropy of step k - 1.

    State: `first_entropy`, `law` (what the law remembers), `variates`, `arrived` (whether the target was reached),
    `command` (None before there is one), and, for the log, `target_entropy`, `error`, `saturated` (1.0 when the command
    is at its limit and the error asks for more), `alarm`, and the law's estimates.
    """

    target: Target = Target("0.5")
    """Entropy to hold: nats per token, a multiple of the first measured entropy such as 0.6x, or a schedule."""
    law: Law = PI()
    """How the error becomes a command from -1 to 1."""
    quantity: Quantity = Entropy()
    """What is measured and held: the entropy, or another mean, in its own unit."""
    hold: Literal["at", "at-least", "at-most"] = "at"
    """`at`: the entropy is held at the target. `at-least`: it is only raised. `at-most`: it is only lowered."""
    approach: int = 0
    """Steps, at most a third of the run, in which a constant target is reached at the latest. On the way the entropy
    may be anywhere between the target and a line to it from the first entropy, so the control does not act while the
    policy goes there by itself. 0: the target holds from the first step.
    """
    variates: bool = False
    """Take what is known of the drawn prompts from earlier epochs out of the reading (control variates)."""

    def __post_init__(self) -> None:
        require(self.approach >= 0, "control.approach", self.approach, "a number of steps, 0 or more")
        named = not isinstance(self.quantity, TokenShare) or bool(self.quantity.tokens)
        require(named, "control.quantity.tokens", (), "a list of token numbers: the share of none is always 0")

    def initial_state(self) -> State:
        """Return a state without a measurement and without a command."""
        return {"command": None, "law": {}, "first_entropy": None}

    @property
    def most_command(self) -> float:
        """The largest command that the law may give; 1 is the control's full strength as its settings name it."""
        return 1.0

    def reading(self, measured: Measured) -> float:
        """Return what the loop controls: the entropy, nats per token, or another quantity, in its unit."""
        return Metric.of(*self.quantity.values(measured.scored)).mean if self._special else measured.entropy.mean

    def reading_se(self, measured: Measured) -> float:
        """Return the standard error of `reading` in its unit; NaN if it is not known."""
        values = self.quantity.values(measured.scored)
        return standard_error(*values, measured.scored.batch.groups) if self._special else measured.entropy_se

    @property
    def _special(self) -> bool:
        return self.quantity != Entropy()

    def report(self, before: State, after: State) -> ControlReport:
        """Return what the log records. Target and reading of another quantity than the entropy have other names."""
        found = super().report(before, after)
        if not self._special or found.target_entropy is None:
            return found
        held, error = found.target_entropy, found.error
        reading = None if error is None else held - error
        return replace(
            found,
            target_entropy=None,
            quantity=self.quantity.name,
            quantity_target=held,
            quantity_reading=reading,
        )

    def update(self, state: State, measured: Measured) -> State:
        """Return the state with the command for the next step. A step that measured nothing (NaN) changes nothing."""
        known = compared(state, self.target, self.reading(measured), measured.step)
        if known is None:
            return state
        now = {**state, **known}
        entropy, se = self.reading(measured), self.reading_se(measured)
        if self.variates:
            entropy, se, now["variates"] = variates.corrected(measured, state.get("variates", {}), self.quantity)
        if self.approach:
            now["arrived"] = self._arrived(now, entropy)
        most = self.most_command
        low, high = {"at": (-most, most), "at-least": (0.0, most), "at-most": (-most, 0.0)}[self.hold]
        # A short run is to arrive, too.
        span = max(1, min(self.approach, measured.scored.step.steps // 3))
        this, soon, later = (self._band(now, measured.step + ahead, span) for ahead in range(3))
        seen = Seen(entropy, (this, soon, later), se, state["command"] or 0.0, low, high)
        unit = abs(now["first_entropy"]) if self._special else 1.0
        after = {**now, **commanded(self.law, state, seen, known["error"], unit)}
        return {**after, "advice": self.advice(after) if after["alarm"] else None}

    def advice(self, state: State) -> str:
        """Return what would give the control the authority that it lacks, for a state with an alarm."""
        return f"{missing_authority(state, self.most_command)} is needed"

    def _arrived(self, state: State, entropy: float) -> bool:
        """Return whether the entropy has once been at the target, or beyond it as seen from the first entropy."""
        target, first = state["target_entropy"], state["first_entropy"]
        reached = entropy <= target if first > target else entropy >= target
        return bool(state.get("arrived", not self.target.constant) or reached)

    def _band(self, state: State, step: int, span: int) -> Band:
        """Return where the reading of a step should be: at the target, or, on the way, not beyond the line to it."""
        first = state["first_entropy"]
        target = self.target.at(step, first)
        if state.get("arrived", True):
            return target, target
        line = first + (target - first) * min(1.0, step / span)
        return min(target, line), max(target, line)


def commanded(law: Law, state: State, seen: Seen, error: float, unit: float = 1.0) -> dict[str, Any]:
    """Return what a law changes in the state of a closed loop: `command`, `law`, what is logged, and the alarm.

    Args:
        law: The law.
        state: The state that the step acted on.
        seen: What the law is told.
        error: Target minus reading, nats per token; the alarm watches it.
        unit: What the alarm's limits are multiplied by, for another quantity than the entropy.
    """
    known = state.get("law", {})
    # A run may go on with another law, which cannot read what this one remembered.
    command, memory = law(seen, known if known.get("name") == law.name else {})
    at_limit = (command >= seen.high > 0 and error > 0) or (command <= seen.low < 0 and error < 0)
    return {
        "law": {**memory, "name": law.name},
        "command": command,
        "saturated": float(at_limit),
        **_watch(state, *_watched(error / unit, memory, seen, unit), at_limit),
        **_estimates(memory),
    }


def followed(
    law: Law, state: State, bands: tuple[Band, Band, Band], reading: float, se: float, acted: float
) -> dict[str, Any]:
    """Return what a law changes in the state of a control whose coefficient it moves: see `commanded`.

    Args:
        law: The law.
        state: The state that the step acted on.
        bands: Where the readings of this step and of the next two should be; a target is a band of one value.
        reading: The reading of this step.
        se: Its standard error, in its unit; NaN if it is not known.
        acted: The command that gives the coefficient of the state, if no law has moved it yet.
    """
    seen = Seen(reading, bands, se, state.get("command", acted))
    return commanded(law, state, seen, seen.error)


def at_targets(target: Callable[[int, float], float], step: int, first: float) -> tuple[Band, Band, Band]:
    """Return the targets of a step and of the next two as bands of one value.

    Args:
        target: The target of a step, given the first reading.
        step: The number of the step.
        first: The first reading of the run.
    """
    now, soon, later = (target(step + ahead, first) for ahead in range(3))
    return (now, now), (soon, soon), (later, later)


def missing_authority(state: State, most: float = 1.0) -> str:
    """Return in words how much more authority the control needs; from the law's estimates, if it has any.

    Args:
        state: The state with the alarm.
        most: The largest command.
    """
    if "drift" not in state:
        return "more authority than the control has"
    up = state["error"] > 0
    drift, authority = state["drift"], most * state["authority_up" if up else "authority_down"]
    against = -drift if up else drift
    moves = f"the largest command moves {authority:.3f} nats a step, the rest of the update {drift:+.3f}"
    return f"about {max(2.0, 1.5 * against / authority):.1f} times the control's authority ({moves})"


def compared(state: State, target: Target, entropy: float, step: int) -> dict[str, Any] | None:
    """Return `first_entropy`, `target_entropy` and `error` of a step that measured `entropy`; None if that is NaN.

    Args:
        state: The state that holds `first_entropy`, None before the first measurement.
        target: The target.
        entropy: The measured entropy, nats per token.
        step: The number of the step.
    """
    if math.isnan(entropy):
        return None
    first = entropy if state["first_entropy"] is None else state["first_entropy"]
    aimed = target.at(step, first)
    return {"first_entropy": first, "target_entropy": aimed, "error": aimed - entropy}


def _estimates(memory: Mapping[str, Any]) -> dict[str, float]:
    """Return the estimates of a law that has them, under the names of `ControlReport`."""
    if "drift" not in memory:
        return {}
    return {
        "entropy_estimate": memory["entropy"],
        "entropy_estimate_se": memory["se"],
        "drift": memory["drift"],
        "authority_up": memory["up"],
        "authority_down": memory["down"],
    }


def _watched(error: float, memory: Mapping[str, Any], seen: Seen, unit: float) -> tuple[float, float]:
    """Return the error that the alarm watches and the smallest one that raises it, in multiples of the unit."""
    if "drift" not in memory:
        return error, ALARM_ERROR
    return outside(memory["entropy"], *seen.bands[0]) / unit, ALARM_ESTIMATE


def _watch(state: State, error: float, least: float, saturated: bool) -> dict[str, Any]:
    """Return what changes in the state of the saturation alarm.

    It counts saturated steps in a row on one side of the target. After every `ALARM_AFTER` of them, it raises the alarm
    if the error did not shrink.
    """
    count, error_then = state.get("saturated_steps", 0), state.get("saturated_error", 0.0)
    if not saturated:
        return {"saturated_steps": 0, "saturated_error": 0.0, "alarm": False}
    if count == 0 or error * error_then <= 0:
        return {"saturated_steps": 1, "saturated_error": error, "alarm": False}
    if (count + 1) % ALARM_AFTER:
        return {"saturated_steps": count + 1, "saturated_error": error_then, "alarm": False}
    alarm = abs(error) > least and abs(error) > 0.9 * abs(error_then)
    return {"saturated_steps": count + 1, "saturated_error": error, "alarm": alarm}
