"""Functions that the checks share: windows, levels, onsets and the format of numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, median

from aepo.doctor.types import LogSeries

# A level is measured over a tenth of the steps, over at least this many, and over at most a third of the steps.
WINDOW = 10


def window(length: int) -> int:
    """Return the number of points over which a level of a series of this length is measured."""
    return max(1, min(max(WINDOW, length // 10), length // 3))


def finite(series: LogSeries) -> LogSeries:
    """Return the points whose values are finite."""
    return tuple(point for point in series if math.isfinite(point[1]))


def start(series: LogSeries) -> float:
    """Return the level at the start: the median of at most 3 points, because a run can break in its first steps."""
    return median(value for _, value in series[: min(3, window(len(series)))])


def end(series: LogSeries) -> float:
    """Return the level at the end: the mean of the last `window` points, each within the range of its neighbours."""
    return fmean(_without_spikes([value for _, value in series[-window(len(series)) :]]))


def _without_spikes(values: Sequence[float]) -> Sequence[float]:
    """Return the values with the lowest and the highest tenth pulled in to the next one."""
    cut = len(values) // 10
    ordered = sorted(values)
    low, high = ordered[cut], ordered[-1 - cut]
    return [max(low, min(high, value)) for value in values]


def since(series: LogSeries, holds: Callable[[float], bool]) -> int | None:
    """Return the first step from which every value up to the end holds; None if the last value does not."""
    first = None
    for step, value in reversed(series):
        if not holds(value):
            break
        first = step
    return first


def smooth(series: LogSeries, width: int) -> LogSeries:
    """Return the trailing medians over `width` points; the first one stands where the window is full."""
    values = [value for _, value in series]
    ends = range(width, len(series) + 1)
    return tuple((series[stop - 1][0], median(values[stop - width : stop])) for stop in ends)


def onset(series: LogSeries, holds: Callable[[float], bool], width: int | None = None) -> int:
    """Return the step at which the level begins to hold and then holds up to the end.

    It is the step of the first value that holds within the first window whose median, and every later median, holds. If
    the last median does not hold, it is the first step of the series. A window has `width` points, or as many as a
    level, and at most `WINDOW`.
    """
    width = min(WINDOW, width or window(len(series)), window(len(series)))
    step = since(smooth(series, width), holds)
    if step is None:
        return series[0][0]
    last = next(index for index, point in enumerate(series) if point[0] == step)
    within = series[last + 1 - width : last + 1]
    return next((at for at, value in within if holds(value)), step)


def decimals(value: float) -> str:
    """Format a number with three significant digits."""
    return f"{value:.3g}"


def percent(share: float) -> str:
    """Format a share as a whole percentage."""
    return f"{share:.0%}"
