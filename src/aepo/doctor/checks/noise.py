"""The noise of a series, with its autocorrelation, and levels that are compared against it."""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from aepo.doctor.checks.base import window
from aepo.doctor.types import Confidence, LogSeries

# Limits from the surest to the weakest.
Limits = tuple[tuple[float, Confidence], ...]
StandardError = Callable[[int], float]
# A change counts from this many standard errors beyond its limit; docs/doctor.md has the error rates that follow.
SURE_BY = 2.5
# The median of Gaussian values has 1.25 times the standard error of their mean.
OF_MEDIAN = 1.25
# From a median absolute deviation to a Gaussian standard deviation.
FROM_MAD = 1.4826
# Residuals further out than this many standard deviations are pulled in, because spikes are no noise.
OUTLYING = 4.0
MOST_LAGS = 100
# A level that begins late is judged on at least this many last points, one at the start on at least FIRST.
LAST, FIRST = 8, 3
# With fewer rows than ROWS a finding is at most possible, with fewer than FEW at most likely, and a change possible.
ROWS, FEW = 5, 10
# Share of the median of the positive values below which logarithms are cut off.
FLOOR = 1e-6


@dataclass(frozen=True)
class Change:
    """`Change` holds two levels of a series that differ by more than its noise explains."""

    before: float
    """The level at the start, in the unit of the series."""
    after: float
    """The level at the end, in the unit of the series."""
    confidence: Confidence
    """How sure it is that the change is beyond its limit."""
    width: int
    """The number of last points whose median is `after`."""


def running_median(values: Sequence[float], half: int) -> list[float]:
    """Return the medians over `half` points on either side; at the ends both sides become shorter alike.

    A monotone stretch and a step between two long levels come through unchanged.
    """
    held: list[float] = []
    found, low, high = [], 0, 0
    for at in range(len(values)):
        side = min(half, at, len(values) - 1 - at)
        while high <= at + side:
            insort(held, values[high])
            high += 1
        while low < at - side:
            held.pop(bisect_left(held, values[low]))
            low += 1
        found.append(held[len(held) // 2])
    return found


def standard_error(values: Sequence[float]) -> StandardError:
    """Return a function from a number of neighbouring points to the standard error of their mean.

    The noise is what a running median leaves, without spikes. Its autocorrelation counts (the sum of autocovariances
    over the initial positive pairs of lags, Geyer 1992), so that a slow series has few independent points.
    """
    if len(values) < 2:
        return lambda _: 0.0
    smooth = running_median(values, max(2, len(values) // 8))
    rest = [value - level for value, level in zip(values, smooth, strict=True)]
    sizes = sorted(map(abs, rest))
    most = max(OUTLYING * FROM_MAD * median(sizes), sizes[math.ceil(0.95 * len(sizes)) - 1])
    rest = [max(-most, min(most, value)) for value in rest]
    steps = [later - earlier for earlier, later in pairwise(values)]
    slope = median(steps)
    apart = FROM_MAD * median(abs(step - slope) for step in steps)
    variance = max(fmean(value * value for value in rest), apart**2 / 2)
    # A few points know their own noise badly.
    variance *= (1 + 3 / len(values)) ** 2
    long_run = variance * _correlation_time(rest)
    return lambda points: math.sqrt(min(long_run / points, variance))


def _correlation_time(rest: Sequence[float]) -> float:
    """Return how many points of the series have the information of one independent point, at least 1."""
    centre = fmean(rest)
    rest = [value - centre for value in rest]
    own = sum(value * value for value in rest)
    if own == 0:
        return 1.0
    lags = min(MOST_LAGS, len(rest) // 4)
    time, pair = -1.0, 0.0
    for lag in range(0, lags - 1, 2):
        pair = sum(_shared(rest, at) for at in (lag, lag + 1)) / own
        if pair <= 0:
            break
        time += 2 * pair
    return max(1.0, time)


def _shared(rest: Sequence[float], lag: int) -> float:
    return sum(map(float.__mul__, rest, rest[lag:])) if lag else sum(value * value for value in rest)


def widths(length: int, least: int) -> list[int]:
    """Return the widths at which a level of a series of this length is measured: `least`, doubled up to the window."""
    widest = window(length)
    found = [min(least, widest)]
    while found[-1] < widest:
        found.append(min(2 * found[-1], widest))
    return found


def changed(series: LogSeries, limits: Limits, falls: bool) -> Change | None:
    """Compare the level at the end with the level at the start, as a ratio.

    The start is measured over several widths, because a run can break in its first steps, and so is the end. A ratio
    counts if it is still beyond the limit after `SURE_BY` standard errors were taken off, either those of the
    logarithms or those of the values.

    Args:
        series: Finite values, positive at the start.
        limits: Ratios of the end to the start, with the confidence that each gives; the surest stands first.
        falls: Whether the level has to be below the limit, not above it.

    Returns:
        The change with the highest confidence, or None if no limit is passed.
    """
    values = [value for _, value in series]
    if max(values, default=0.0) <= 0:
        return None
    logs, sign = _logs(values), 1 if falls else -1
    of_logs, of_values = standard_error(logs), standard_error(values)
    best: tuple[int, float, Change] | None = None
    for first in widths(len(logs), FIRST):
        for last in widths(len(logs), LAST):
            before, after = median(values[:first]), median(values[-last:])
            if before <= 0:
                continue
            moved = sign * (median(logs[-last:]) - median(logs[:first]))
            by_logs = moved + SURE_BY * OF_MEDIAN * math.hypot(of_logs(first), of_logs(last))
            # Where little is left, logarithms are noisy and the values are not.
            margins = [sign * SURE_BY * OF_MEDIAN * of_values(width) for width in (first, last)]
            ends = (before - margins[0], after + margins[1])
            by_values = sign * math.log(ends[1] / ends[0]) if min(ends) > 0 else math.inf
            beyond = min(by_logs, by_values)
            rank = next((at for at, (limit, _) in enumerate(limits) if beyond < sign * math.log(limit)), None)
            if rank is not None and (best is None or (rank, beyond) < best[:2]):
                confidence = limits[rank][1] if len(values) >= FEW else "possible"
                best = (rank, beyond, Change(before, after, confidence, last))
    return best[2] if best else None


def risen(series: LogSeries) -> float:
    """Return by how many standard errors the level at the end is above the level at the start; below 0 if it fell.

    The result is infinite if the series has no noise, and 0 if it does not change.
    """
    values = [value for _, value in series]
    wide = window(len(values))
    moved = fmean(values[-wide:]) - fmean(values[:wide])
    noise = math.sqrt(2) * standard_error(values)(wide)
    if moved == 0:
        return 0.0
    return moved / noise if noise > 0 else math.copysign(math.inf, moved)


def level_above(series: LogSeries, limits: Limits, spiky: bool = False) -> tuple[Confidence, float, int] | None:
    """Return the confidence with which the level at the end is at or above a limit, the level and its width.

    Args:
        series: Finite values.
        limits: Levels, with the confidence that each gives; the surest stands first.
        spiky: Whether the values are positive and can have spikes. Their levels are medians and their noise is that of
            the logarithms. The levels of other values, such as shares, are means.

    Returns:
        None if no limit is passed by `SURE_BY` standard errors.
    """
    values = [value for _, value in series]
    if not values or (spiky and max(values) <= 0):
        return None
    scaled = _logs(values) if spiky else values
    bars = [math.log(limit) if spiky else limit for limit, _ in limits]
    mean, factor = (median, SURE_BY * OF_MEDIAN) if spiky else (fmean, SURE_BY)
    error, wide = standard_error(scaled), window(len(values))
    now, best = mean(scaled[-wide:]), None
    for last in sorted({*widths(len(values), LAST), max(1, len(values) // 2), len(values)}):
        low = mean(scaled[-last:]) - factor * error(last)
        # Half of the log, and all of it, only make the level of the end surer.
        low = min(low, now) if last > wide else low
        rank = next((at for at, bar in enumerate(bars) if low >= bar - 1e-12), None)
        if rank is not None and (best is None or rank < best[0] or (rank == best[0] and last <= wide)):
            best = (rank, min(last, wide))
    if best is None:
        return None
    rank, last = best
    return capped(limits[rank][1], len(values)), mean(values[-last:]), last


def capped(confidence: Confidence, rows: int) -> Confidence:
    """Return the confidence, lowered where a log has so few rows that it says nothing sure."""
    if rows < ROWS:
        return "possible"
    return "likely" if rows < FEW and confidence == "sure" else confidence


def _logs(values: Sequence[float]) -> list[float]:
    """Return the logarithms of positive values; values near 0 are cut off at a small share of an ordinary one."""
    floor = FLOOR * median(value for value in values if value > 0)
    return [math.log(max(value, floor)) for value in values]
