"""What the checks share: windows, onsets, wording."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from aepo.doctor.types import Series

# Steps that a level is the mean of; shorter logs use a third of what they have.
WINDOW = 10


def window(series: Series) -> int:
    """How many points make a level here."""
    return max(1, min(WINDOW, len(series) // 3))


def finite(series: Series) -> Series:
    """Without NaN and infinities."""
    return tuple(point for point in series if math.isfinite(point[1]))


def start(series: Series) -> float:
    """The level at the beginning; of few points, since a run can break in its first step."""
    return fmean(value for _, value in series[: min(3, window(series))])


def end(series: Series) -> float:
    """The level at the end."""
    return fmean(value for _, value in series[-window(series) :])


def since(series: Series, holds: Callable[[float], bool]) -> int | None:
    """The step from which every value holds, up to the end; None if the last does not."""
    first = None
    for step, value in reversed(series):
        if not holds(value):
            break
        first = step
    return first


def smooth(series: Series) -> Series:
    """Trailing means of a window, where it is full."""
    width = window(series)
    values = [value for _, value in series]
    return tuple(
        (series[last][0], fmean(values[last + 1 - width : last + 1])) for last in range(width - 1, len(series))
    )


def onset(series: Series, holds: Callable[[float], bool]) -> int:
    """Where the level began to hold for good: the first value that holds in the first such window."""
    step = since(smooth(series), holds)
    if step is None:
        return series[0][0]
    last = next(index for index, point in enumerate(series) if point[0] == step)
    within = series[last + 1 - window(series) : last + 1]
    return next((at for at, value in within if holds(value)), step)


def decimals(value: float) -> str:
    """Three digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """A share."""
    return f"{share:.0%}"
