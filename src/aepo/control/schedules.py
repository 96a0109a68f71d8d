"""Schedules: numbers as a function of the step, for entropy targets and coefficients.

    0.5                           constant
    0.6x                          0.6 times the first measured entropy (targets only)
    linear(a,b,n)                 from a at step 0 to b at step n, then b
    cosine(a,b,n)                 the same along half a cosine
    sine(mean,amplitude,period)   mean + amplitude * sin(2 pi step / period)
    piecewise(0:0.8,100:0.4)      each value holds from its step until the next
    inverse-sqrt(a)               a / sqrt(step + 1)

In a target every value may carry an `x`, as in linear(1x,0.5x,100): a multiple of the first measured entropy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from aepo.errors import InvalidValue

SYNTAX = "linear(a,b,n), cosine(a,b,n), sine(mean,amplitude,period), piecewise(step:value,...) or inverse-sqrt(a)"

# (step, first measured entropy in nats) -> value
_Curve = Callable[[int, float], float]


@dataclass(frozen=True)
class Schedule:
    """`Schedule` is a number as a function of the step, in the syntax above.

    Raises:
        InvalidValue: The text is in another syntax.
    """

    spec: str
    """The text, such as 0.5 or linear(1,0.5,100)."""
    _curve: _Curve = field(init=False, repr=False, compare=False)

    _field: ClassVar[str] = "schedule"
    _syntax: ClassVar[str] = f"a number, {SYNTAX}"
    _is_target: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_curve", self._parse())

    def at(self, step: int, first_entropy: float = math.nan) -> float:
        """Return the value at this step.

        Args:
            step: The number of the step, from 0.
            first_entropy: The first measured entropy, nats per token; a multiple `x` needs it.
        """
        return self._curve(step, first_entropy)

    @property
    def constant(self) -> bool:
        """Return whether the value is the same at every step."""
        return "(" not in self.spec

    def __str__(self) -> str:
        return self.spec

    def _parse(self) -> _Curve:
        text = self.spec.replace(" ", "")
        call = re.fullmatch(r"(linear|cosine|sine|piecewise|inverse-sqrt)\((.*)\)", text)
        if not call:
            return _constant(self._value(text))
        name, arguments = call[1], call[2].split(",")
        if name == "piecewise":
            return _piecewise([self._point(argument) for argument in arguments], self._refused)
        if name == "inverse-sqrt":
            return _inverse_sqrt(self._value(call[2]))
        if len(arguments) != 3:
            raise self._refused(f"{name} with three arguments: {self._syntax}")
        first, second = self._value(arguments[0]), self._value(arguments[1])
        span = self._steps(arguments[2], minimum=1)
        return {"linear": _linear, "cosine": _cosine, "sine": _sine}[name](first, second, span)

    def _refused(self, wanted: str) -> InvalidValue:
        return InvalidValue(self._field, self.spec, wanted)

    def _value(self, text: str) -> _Value:
        relative = self._is_target and text.endswith("x")
        try:
            number = float(text.removesuffix("x") if relative else text)
        except ValueError:
            raise self._refused(self._syntax) from None
        if not math.isfinite(number) or (self._is_target and number < 0):
            raise self._refused(f"finite{' and not negative' * self._is_target}; {self._syntax}")
        return _Value(number, relative)

    def _steps(self, text: str, minimum: int) -> int:
        if not text.isdecimal() or int(text) < minimum:
            raise self._refused(f"given in whole steps, at least {minimum}; {self._syntax}")
        return int(text)

    def _point(self, text: str) -> tuple[int, _Value]:
        step, colon, value = text.partition(":")
        if not colon:
            raise self._refused(f"written as step:value pairs; {self._syntax}")
        return self._steps(step, minimum=0), self._value(value)


@dataclass(frozen=True)
class Target(Schedule):
    """`Target` is an entropy target, nats per token.

    It is never negative, and every value may be a multiple of the first measured entropy.
    """

    _field: ClassVar[str] = "target"
    _syntax: ClassVar[str] = f"a number, a multiple of the first entropy such as 0.6x, {SYNTAX}"
    _is_target: ClassVar[bool] = True


@dataclass(frozen=True)
class _Value:
    """`_Value` is a number, or a multiple of the first entropy."""

    number: float
    """The number."""
    relative: bool
    """Whether the number is a multiple of the first entropy."""

    def at(self, first_entropy: float) -> float:
        return self.number * first_entropy if self.relative else self.number


def _constant(value: _Value) -> _Curve:
    return lambda step, first: value.at(first)


def _inverse_sqrt(value: _Value) -> _Curve:
    return lambda step, first: value.at(first) / math.sqrt(step + 1)


def _linear(start: _Value, end: _Value, span: int) -> _Curve:
    def curve(step: int, first: float) -> float:
        share = min(step / span, 1.0)
        return (1 - share) * start.at(first) + share * end.at(first)

    return curve


def _cosine(start: _Value, end: _Value, span: int) -> _Curve:
    def curve(step: int, first: float) -> float:
        share = (1 - math.cos(math.pi * min(step / span, 1.0))) / 2
        return (1 - share) * start.at(first) + share * end.at(first)

    return curve


def _sine(mean: _Value, amplitude: _Value, period: int) -> _Curve:
    return lambda step, first: mean.at(first) + amplitude.at(first) * math.sin(2 * math.pi * step / period)


def _piecewise(points: list[tuple[int, _Value]], refused: Callable[[str], InvalidValue]) -> _Curve:
    steps = [step for step, _ in points]
    if steps[0] != 0 or steps != sorted(set(steps)):
        raise refused("piecewise from step 0 with rising steps")
    return lambda step, first: next(v.at(first) for s, v in reversed(points) if s <= step)
