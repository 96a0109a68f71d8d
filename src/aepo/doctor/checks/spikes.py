"""Check for single steps that stand far out of their neighbours: a spike is no level."""

from __future__ import annotations

import math
from statistics import median

from aepo.doctor.checks.base import decimals, finite
from aepo.doctor.checks.noise import FEW, FROM_MAD, running_median
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

NAMES = ("gradient_norm", "reference_kl", "approximate_kl", "mismatch", "mismatch_kl", "loss", "entropy")
# A spike is this multiple of the median around it or more, and this many robust standard deviations (of logarithms)
# away from it. A loss has both signs: for it LOSS_DEVIATIONS count.
MULTIPLE, DEVIATIONS, LOSS_DEVIATIONS = 10.0, 8.0, 30.0
# A value below this is no spike, whatever the multiple.
LEAST = {"approximate_kl": 0.05, "reference_kl": 0.1, "mismatch": 0.05, "mismatch_kl": 0.02, "entropy": 0.2}
# Points on either side of the median, and the longest spike: more points in a row are a level.
AROUND, LONGEST = 10, 4
# Spikes in at least this share of the steps, and as many as this, come again and again.
OFTEN, AT_LEAST = 0.02, 3


def spikes(log: Log) -> list[Finding]:
    """Find spikes in the series of `NAMES`."""
    return [finding for name in NAMES if (finding := _spikes(log, name))]


def _spikes(log: Log, name: str) -> Finding | None:
    series = finite(log.get(name))
    if len(series) < FEW:
        return None
    found = _short(series, _signed(series) if name == "loss" else _positive(series, LEAST.get(name, 0.0)))
    if not found:
        return None
    again = len(found) >= max(AT_LEAST, OFTEN * len(series))
    step, value, around = max(found, key=lambda point: abs(point[1]))
    key = log.keys.get(name, name)
    often = f"{len(found)} spikes, the largest" if len(found) > 1 else "one spike"
    confidence: Confidence = "likely" if again and name != "loss" else "possible"
    return Finding(
        kind="spike" if not again else "spikes",
        step=found[0][0],
        evidence=f"`{key}` has {often} {decimals(value)} at step {step}, where the steps around it have "
        f"{decimals(around)}; the level comes back",
        confidence=confidence,
        advice="one spike does little where the gradient is clipped; look at the batch of this step (very long or very "
        "unlikely completions, a broken reward), and whether reward and entropy moved after it"
        if not again
        else "spikes that come again and again: clip the gradient, look for few very long or very unlikely "
        "completions, and for batches with a broken reward",
    )


def _positive(series: LogSeries, least: float) -> list[tuple[int, float]]:
    """Return the places that stand out upwards, with the median around each."""
    values = [abs(value) for _, value in series]
    floor = 1e-3 * median(values)
    if floor == 0:
        return []
    logs = [math.log(max(value, floor)) for value in values]
    around = _around(logs)
    spread = FROM_MAD * median(abs(value - level) for value, level in zip(logs, around, strict=True))
    limit = max(math.log(MULTIPLE), DEVIATIONS * spread)
    return [
        (at, math.exp(level))
        for at, (value, level) in enumerate(zip(logs, around, strict=True))
        if value - level >= limit and values[at] >= least
    ]


def _signed(series: LogSeries) -> list[tuple[int, float]]:
    values = [value for _, value in series]
    around = _around(values)
    spread = FROM_MAD * median(abs(value - level) for value, level in zip(values, around, strict=True))
    limit = max(LOSS_DEVIATIONS * spread, MULTIPLE * median(map(abs, values)))
    return [
        (at, level)
        for at, (value, level) in enumerate(zip(values, around, strict=True))
        if abs(value - level) >= limit > 0
    ]


def _around(values: list[float]) -> list[float]:
    """Return the medians around the values; at the ends the window lies on one side."""
    middle = running_median(values, AROUND)
    ends = min(AROUND, len(values) // 2)
    first, last = median(values[: 2 * ends + 1]), median(values[-2 * ends - 1 :])
    return [first] * ends + middle[ends : len(values) - ends] + [last] * ends


def _short(series: LogSeries, found: list[tuple[int, float]]) -> list[tuple[int, float, float]]:
    """Return (step, value, median around it) of the spikes; a longer run of such points is a level and is left out.

    A run of points that reaches the end of the log may be the beginning of a level. It counts if it is one point.
    """
    runs: list[list[tuple[int, float]]] = []
    for place in found:
        if runs and place[0] - runs[-1][-1][0] == 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    short = [run for run in runs if len(run) <= LONGEST and not (len(run) > 1 and run[-1][0] == len(series) - 1)]
    highest = [max(run, key=lambda place: abs(series[place[0]][1])) for run in short]
    return [(series[at][0], series[at][1], level) for at, level in highest]
