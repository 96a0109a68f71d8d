"""Laws: how a reading of the entropy becomes a command. All closed loops share them.

error = target - entropy, in nats per token; a positive error asks for more entropy. A command is a number in [-1, 1]:
its sign says which way to push, its size how much of the actuator's range to use. A law is a pure function. What it
must remember goes in and comes out as plain JSON data, so it is checkpointed with the control. `self_tuning.py` holds
the law that learns the process from the run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from aepo.errors import require

Memory = Mapping[str, Any]
"""What a law remembers from step to step: plain JSON data by name."""
Band = tuple[float, float]
"""The lowest and the highest entropy that are wanted, nats per token; the two are equal for a target."""


@dataclass(frozen=True)
class Seen:
    """`Seen` is what a law is told after step k. It answers with the command of step k + 1."""

    entropy: float
    """The reading of step k, nats per token: the entropy before the update of step k."""
    bands: tuple[Band, Band, Band]
    """Where the readings of the steps k, k + 1 and k + 2 should be. The command of step k + 1 acts on the last one."""
    se: float = math.nan
    """The standard error of the reading, nats per token; NaN if it is not known."""
    command: float = 0.0
    """The command that acted in the update of step k; 0 if there was none."""
    low: float = -1.0
    """The smallest command that is allowed."""
    high: float = 1.0
    """The largest command that is allowed."""

    @classmethod
    def at(cls, entropy: float, target: float) -> Seen:
        """Return what a law is told of an entropy and a constant target, both in nats per token."""
        return cls(entropy, ((target, target),) * 3)

    @property
    def error(self) -> float:
        """Return how far the reading is under its band (positive) or over it (negative), nats per token."""
        return outside(self.entropy, *self.bands[0])

    def limit(self, command: float) -> float:
        """Return the command within what is allowed."""
        return max(self.low, min(self.high, command))


class Law(ABC):
    """`Law` turns what was seen, and what it remembers, into a command and the next memory."""

    name: ClassVar[str]
    graded: ClassVar[bool] = False
    """Whether the size of the command means something, so that the law may command more than 1."""

    @abstractmethod
    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return the command of the next step, from `seen.low` to `seen.high`, and what to remember.

        Args:
            seen: The reading and the targets.
            memory: What the last call returned; empty at first.
        """


@dataclass(frozen=True)
class Constant(Law):
    """`Constant` gives the same command whatever the entropy is: an open loop."""

    name: ClassVar[str] = "constant"
    command: float = 1.0
    """The command, from -1 (lower the entropy) to 1 (raise it)."""

    def __post_init__(self) -> None:
        require(-1 <= self.command <= 1, "law.command", self.command, "a number from -1 to 1")

    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return the constant."""
        return seen.limit(self.command), memory


@dataclass(frozen=True)
class Switch(Law):
    """`Switch` is AEPO's own law (2510.08141): full on, up or down; bang-bang."""

    name: ClassVar[str] = "switch"
    tie: Literal["low", "high"] = "low"
    """What happens at error = 0: `low` lowers the entropy, as v1 of the paper prints; `high` raises it, as the authors'
    code does.
    """

    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return +1 below the target and -1 above it; 0 inside a band."""
        if seen.error == 0 and seen.bands[0][0] < seen.bands[0][1]:
            return 0.0, memory
        up = seen.error > 0 or (seen.error == 0 and self.tie == "high")
        return seen.limit(1.0 if up else -1.0), memory


@dataclass(frozen=True)
class Proportional(Law):
    """`Proportional` commands gain * error, limited to [-1, 1]. A constant disturbance leaves a constant error."""

    name: ClassVar[str] = "proportional"
    graded: ClassVar[bool] = True
    gain: float = 5.0
    """Command per nat of error."""

    def __post_init__(self) -> None:
        require(self.gain > 0, "law.gain", self.gain, "a positive number (commands per nat)")

    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return the error times the gain."""
        return seen.limit(self.gain * seen.error), memory


@dataclass(frozen=True)
class PI(Law):
    """`PI` commands gain * (error + sum of errors, this one included, / integral_steps), limited to [-1, 1].

    Anti-windup is by conditional integration: an error is not added to the sum if the command would then exceed its
    limit in the direction of the error. So after a long start far above the target, the command can turn at once.
    Memory: `integral`, the sum of the errors that counted, in nats.
    """

    name: ClassVar[str] = "pi"
    graded: ClassVar[bool] = True
    gain: float = 10.0
    """Command per nat of error."""
    integral_steps: float = 30.0
    """Steps after which, at a constant error, the integral part equals the proportional part."""
    dead_band: float = 0.0
    """Size of the error, in nats, below which it counts as 0. A larger error counts by its excess."""

    def __post_init__(self) -> None:
        require(self.gain > 0, "law.gain", self.gain, "a positive number (commands per nat)")
        require(self.integral_steps > 0, "law.integral_steps", self.integral_steps, "a positive number of steps")
        require(self.dead_band >= 0, "law.dead_band", self.dead_band, "a number of nats, 0 or more")

    def __call__(self, seen: Seen, memory: Memory) -> tuple[float, Memory]:
        """Return proportional plus integral, and the sum of the errors that counted."""
        integral = memory.get("integral", 0.0)
        error = max(seen.error - self.dead_band, 0.0) + min(seen.error + self.dead_band, 0.0)
        total = integral + error
        raw = self.gain * (error + total / self.integral_steps)
        if raw != seen.limit(raw) and raw * error > 0:
            raw = self.gain * (error + integral / self.integral_steps)
            total = integral
        return seen.limit(raw), {"integral": total}


# Adapted coefficients: a number with limits that is moved a little after each step.


def stepped(value: float, error: float, size: float, low: float, high: float) -> float:
    """Return `value` moved by `size`, up where error > 0 and down where error < 0, within [low, high]."""
    direction = (error > 0) - (error < 0)
    return min(max(value + size * direction, low), high)


def integrated(value: float, error: float, rate: float, low: float, high: float) -> float:
    """Return value + rate * error, within [low, high]: integral control, also dual ascent."""
    return min(max(value + rate * error, low), high)


def outside(entropy: float, low: float, high: float) -> float:
    """Return how far the entropy is under `low` (positive) or over `high` (negative), else 0: a dead band's error."""
    return max(low - entropy, 0.0) + min(high - entropy, 0.0)


def within(value: float, band: Band) -> float:
    """Return the value, or the end of the band next to it."""
    return min(max(value, band[0]), band[1])
