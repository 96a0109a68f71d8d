"""Laws: how the error becomes a command. All closed loops share them.

error = target - entropy, in nats per token; a positive error asks for more entropy. A command is a number in [-1, 1]:
its sign says which way to push, its size how much of the actuator's range to use. A law is a pure function. What it
must remember goes in and comes out as plain numbers, so it is checkpointed with the control.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from aepo.errors import require


class Law(ABC):
    """`Law` turns an error and an integral into a command and the next integral.

    A law without memory returns the integral that it got.
    """

    name: ClassVar[str]

    @abstractmethod
    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Return the command, in [-1, 1], and the new integral.

        Args:
            error: Target minus entropy, nats per token.
            integral: The integral that the last call returned; 0 at first.
        """


@dataclass(frozen=True)
class Constant(Law):
    """`Constant` gives the same command whatever the error is: an open loop."""

    name: ClassVar[str] = "constant"
    command: float = 1.0
    """The command, from -1 (lower the entropy) to 1 (raise it)."""

    def __post_init__(self) -> None:
        require(-1 <= self.command <= 1, "law.command", self.command, "a number from -1 to 1")

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Return the constant."""
        return self.command, integral


@dataclass(frozen=True)
class Switch(Law):
    """`Switch` is AEPO's own law (2510.08141): full on, up or down; bang-bang."""

    name: ClassVar[str] = "switch"
    tie: Literal["low", "high"] = "low"
    """What happens at error = 0: `low` lowers the entropy, as v1 of the paper prints; `high` raises it, as the authors'
    code does.
    """

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Return +1 below the target and -1 above it."""
        up = error > 0 or (error == 0 and self.tie == "high")
        return (1.0 if up else -1.0), integral


@dataclass(frozen=True)
class Proportional(Law):
    """`Proportional` commands gain * error, limited to [-1, 1]. A constant disturbance leaves a constant error."""

    name: ClassVar[str] = "proportional"
    gain: float = 5.0
    """Command per nat of error."""

    def __post_init__(self) -> None:
        require(self.gain > 0, "law.gain", self.gain, "a positive number (commands per nat)")

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Return the error times the gain."""
        return _limit(self.gain * error), integral


@dataclass(frozen=True)
class PI(Law):
    """`PI` commands gain * (error + sum of errors, this one included, / integral_steps), limited to [-1, 1].

    Anti-windup is by conditional integration: an error is not added to the sum if the command would then exceed its
    limit in the direction of the error. So after a long start far above the target, the command can turn at once.
    """

    name: ClassVar[str] = "pi"
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

    def __call__(self, error: float, integral: float) -> tuple[float, float]:
        """Return proportional plus integral, and the sum of the errors that counted, in nats."""
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
    """Return `value` moved by `size`, up where error > 0 and down where error < 0, within [low, high]."""
    direction = (error > 0) - (error < 0)
    return min(max(value + size * direction, low), high)


def integrated(value: float, error: float, rate: float, low: float, high: float) -> float:
    """Return value + rate * error, within [low, high]: integral control, also dual ascent."""
    return min(max(value + rate * error, low), high)


def outside(entropy: float, low: float, high: float) -> float:
    """Return how far the entropy is under `low` (positive) or over `high` (negative), else 0: a dead band's error."""
    return max(low - entropy, 0.0) + min(high - entropy, 0.0)
