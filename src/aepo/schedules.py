"""Targets as a function of the step.

    0.5                           constant, nats per token
    0.6x                          0.6 times the first measured entropy
    linear(a,b,n)                 from a at step 0 to b at step n, then b
    cosine(a,b,n)                 the same along half a cosine
    sine(mean,amplitude,period)   mean + amplitude * sin(2 pi step / period)
    piecewise(0:0.8,100:0.4)      each value holds from its step until the next

Every value may carry an `x`, as in linear(1x,0.5x,100): a multiple of the first measured entropy.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from aepo.checks import InvalidValue

SYNTAX = (
    "a number, a multiple of the first entropy such as 0.6x, linear(a,b,n), cosine(a,b,n), "
    "sine(mean,amplitude,period) or piecewise(step:value,...)"
)

# (step, first measured entropy in nats) -> nats
_Curve = Callable[[int, float], float]


@dataclass(frozen=True)
class Target:
    """An entropy target (nats per token) in the syntax above; raises `InvalidValue` for anything else."""

    spec: str
    _curve: _Curve = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_curve", _parse(self.spec))

    def at(self, step: int, first_entropy: float) -> float:
        """The target at this step, given the first measured entropy; both in nats per token."""
        return self._curve(step, first_entropy)

    def __str__(self) -> str:
        return self.spec


def _parse(spec: str) -> _Curve:
    text = spec.replace(" ", "")
    call = re.fullmatch(r"(linear|cosine|sine|piecewise)\((.*)\)", text)
    if not call:
        return _constant(_value(text, spec))
    name, arguments = call[1], call[2].split(",")
    if name == "piecewise":
        return _piecewise(arguments, spec)
    if len(arguments) != 3:
        raise InvalidValue("target", spec, f"{name} with three arguments: {SYNTAX}")
    first, second = _value(arguments[0], spec), _value(arguments[1], spec)
    span = _steps(arguments[2], spec, minimum=1)
    return {"linear": _linear, "cosine": _cosine, "sine": _sine}[name](first, second, span)


@dataclass(frozen=True)
class _Value:
    """A number of nats, or of first entropies."""

    number: float
    relative: bool

    def at(self, first_entropy: float) -> float:
        return self.number * first_entropy if self.relative else self.number


def _value(text: str, spec: str) -> _Value:
    try:
        number = float(text.removesuffix("x"))
    except ValueError:
        raise InvalidValue("target", spec, SYNTAX) from None
    if not math.isfinite(number) or number < 0:
        raise InvalidValue("target", spec, f"finite and not negative; {SYNTAX}")
    return _Value(number, relative=text.endswith("x"))


def _steps(text: str, spec: str, minimum: int) -> int:
    if not text.isdecimal() or int(text) < minimum:
        raise InvalidValue("target", spec, f"given in whole steps, at least {minimum}; {SYNTAX}")
    return int(text)


def _constant(value: _Value) -> _Curve:
    return lambda step, first: value.at(first)


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
    return lambda step, first: (mean.at(first) + amplitude.at(first) * math.sin(2 * math.pi * step / period))


def _piecewise(arguments: list[str], spec: str) -> _Curve:
    points: list[tuple[int, _Value]] = []
    for argument in arguments:
        step, colon, value = argument.partition(":")
        if not colon:
            raise InvalidValue("target", spec, f"written as step:value pairs; {SYNTAX}")
        points.append((_steps(step, spec, minimum=0), _value(value, spec)))
    steps = [step for step, _ in points]
    if steps[0] != 0 or steps != sorted(set(steps)):
        raise InvalidValue("target", spec, f"piecewise from step 0 with rising steps; {SYNTAX}")
    return lambda step, first: next(v.at(first) for s, v in reversed(points) if s <= step)
