"""Laws: how the error becomes a command. Shared by every closed loop.

error = target - entropy, nats per token: positive asks for more entropy. A command is a number in [-1, 1]:
its sign says which way to push, its size how much of the actuator's range to use. A law is a pure function:
what it must remember goes in and comes out as plain numbers, so it is checkpointed with the control.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from aepo.errors import require


class Law(ABC):
    """error, integral -> command, integral. Laws without memory hand the integral on as it came."""

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """One measurement: error in nats; returns the command in [-1, 1] and the new integral."""


@dataclass(frozen=True)
class Constant(Law):
    """The same command whatever the error: an open loop."""

    name: ClassVar[str] = "constant"
    command: float = 1.0

    def __post_init__(self) -> None:
        require(-1 <= self.command <= 1, "law.command", self.command, "a number from -1 to 1")

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """The constant."""
        return self.command, integral


@dataclass(frozen=True)
class Switch(Law):
    """AEPO's own law (2510.08141): full on, up or down; bang-bang.

    `tie` decides at error = 0: "low" as v1 of the paper prints, "high" as the authors' code does.
    """

    name: ClassVar[str] = "switch"
    tie: Literal["low", "high"] = "low"

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """+1 below the target, -1 above it."""
        up = error > 0 or (error == 0 and self.tie == "high")
        return (1.0 if up else -1.0), integral


@dataclass(frozen=True)
class Proportional(Law):
    """gain * error, limited to [-1, 1]. A constant disturbance leaves a constant error."""

    name: ClassVar[str] = "proportional"
    gain: float = 5.0

    def __post_init__(self) -> None:
        require(self.gain > 0, "law.gain", self.gain, "a positive number (commands per nat)")

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """The error times the gain."""
        return _limit(self.gain * error), integral


@dataclass(frozen=True)
class PI(Law):
    """gain * (error + sum of errors / integral_steps), limited to [-1, 1].

    Inside `dead_band` nats the error counts as 0, and beyond it by its excess. Anti-windup by conditional
    integration: an error that would push a command further past its limit is not added up, so a long start
    far above the target leaves nothing to unwind.
    """

    name: ClassVar[str] = "pi"
    gain: float = 10.0
    integral_steps: float = 30.0
    dead_band: float = 0.0

    def __post_init__(self) -> None:
        require(self.gain > 0, "law.gain", self.gain, "a positive number (commands per nat)")
        require(self.integral_steps > 0, "law.integral_steps", self.integral_steps, "a positive number of steps")
        require(self.dead_band >= 0, "law.dead_band", self.dead_band, "a number of nats, 0 or more")

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Proportional plus integral; `integral` is the sum of the errors that counted, in nats."""
        error = max(error - self.dead_band, 0.0) + min(error + self.dead_band, 0.0)
        total = integral + error
        raw = self.gain * (error + total / self.integral_steps)
        if abs(raw) > 1 and raw * error > 0:
            raw = self.gain * (error + integral / self.integral_steps)
            total = integral
        return _limit(raw), total


LAWS: dict[str, type[Law]] = {cls.name: cls for cls in (PI, Switch, Proportional, Constant)}


def _limit(command: float) -> float:
    return max(-1.0, min(1.0, command))


# Adapted coefficients: a number with limits that is moved a little after each step.


def stepped(value: float, error: float, size: float, low: float, high: float) -> float:
    """Bang-bang integral: `size` up where error > 0, down where error < 0, within [low, high]."""
    direction = (error > 0) - (error < 0)
    return min(max(value + size * direction, low), high)


def integrated(value: float, error: float, rate: float, low: float, high: float) -> float:
    """Integral control, also dual ascent: value + rate * error, within [low, high]."""
    return min(max(value + rate * error, low), high)


def outside(entropy: float, low: float, high: float) -> float:
    """The error of a dead band: how far the entropy is under `low` (positive) or over `high` (negative), else 0."""
    return max(low - entropy, 0.0) + min(high - entropy, 0.0)
