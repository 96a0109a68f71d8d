"""Functions that the checks share: levels, onsets and the format of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from aepo.doctor.types import LogSeries

# A level is the mean of this many steps, or of a third of the steps if that is fewer.
WINDOW = 10


def window(series: LogSeries) -> int:
    """Return the number of points whose mean is a level of this series."""
    return max(1, min(WINDOW, len(series) // 3))


def finite(series: LogSeries) -> LogSeries:
    """Return the points whose values are finite."""
    return tuple(point for point in series if math.isfinite(point[1]))


def start(series: LogSeries) -> float:
    """Return the level at the start: the mean of at most 3 points, because a run can break in its first steps."""
    return fmean(value for _, value in series[: min(3, window(series))])


def end(series: LogSeries) -> float:
    """Return the level at the end: the mean of the last `window(series)` points."""
    return fmean(value for _, value in series[-window(series) :])


def since(series: LogSeries, holds: Callable[[float], bool]) -> int | None:
    """Return the first step from which every value up to the end holds; None if the last value does not."""
    first = None
    for step, value in reversed(series):
        if not holds(value):
            break
        first = step
    return first


def smooth(series: LogSeries) -> LogSeries:
    """Return the trailing means over `window(series)` points; the first one stands where the window is full."""
    width = window(series)
    values = [value for _, value in series]
    return tuple(
        (series[last][0], fmean(values[last + 1 - width : last + 1])) for last in range(width - 1, len(series))
    )


def onset(series: LogSeries, holds: Callable[[float], bool]) -> int:
    """Return the step at which the level begins to hold and then holds up to the end.

    It is the step of the first value that holds within the first window whose mean, and every later mean, holds. If the
    last mean does not hold, it is the first step of the series.
    """
    step = since(smooth(series), holds)
    if step is None:
        return series[0][0]
    last = next(index for index, point in enumerate(series) if point[0] == step)
    within = series[last + 1 - window(series) : last + 1]
    return next((at for at, value in within if holds(value)), step)


def decimals(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Format a share as a whole percentage."""
    return f"{share:.0%}"
