"""Check whether the sampler and the trainer give the same tokens the same probabilities."""

from __future__ import annotations

from aepo.doctor.checks.base import decimals, finite, onset, start
from aepo.doctor.checks.noise import FEW, Limits, level_above
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

# Measure -> what it is, and the values from which it is a finding. docs/doctor.md says where the figures come from.
LIMITS: dict[str, tuple[str, Limits]] = {
    "mismatch": ("mean |log-probability difference|, nats", ((0.1, "sure"), (0.05, "likely"), (0.03, "possible"))),
    "mismatch_kl": ("estimated KL, nats per token", ((0.05, "sure"), (0.01, "likely"), (0.005, "possible"))),
    "mismatch_probability": ("mean |probability difference|", ((0.03, "sure"), (0.01, "likely"), (0.005, "possible"))),
}
UNCORRELATED: Limits = ((0.9, "sure"), (0.95, "likely"), (0.99, "possible"))
# A gap that grows by this factor comes from training, whatever its size.
GROWS = 10.0
FEWEST = 3
_ADVICE = (
    "sampler and trainer must score the same distribution (temperature, top-p, precision of the head, weights of this "
    "step): compare the two on one batch before you correct by importance weights"
)


def mismatch(log: Log) -> list[Finding]:
    """Find a mismatch, and report the measure of it that is surest among those that the log has."""
    found = [finding for name in LIMITS if (finding := _measure(log, name))]
    if correlated := _correlation(log):
        found.append(correlated)
    order: tuple[Confidence, ...] = ("sure", "likely", "possible")
    return sorted(found, key=lambda finding: order.index(finding.confidence))[:1]


def _measure(log: Log, name: str) -> Finding | None:
    series: LogSeries = tuple((step, abs(value)) for step, value in finite(log.get(name)))
    if len(series) < FEWEST:
        return None
    what, limits = LIMITS[name]
    found = level_above(series, limits, spiky=True)
    if found is None:
        return None
    confidence, now, width = found
    before, floor = start(series), limits[-1][0]
    if confidence == "possible" and now > GROWS * before and len(series) >= FEW:
        confidence = "likely"
    return Finding(
        kind="sampler mismatch",
        step=onset(series, lambda value: value >= floor, width),
        evidence=f"`{log.keys.get(name, name)}` ({what}) is {decimals(now)} at the end, "
        f"{decimals(before)} at the start",
        confidence=confidence,
        advice=_ADVICE,
    )


def _correlation(log: Log) -> Finding | None:
    series = finite(log.get("mismatch_correlation"))
    if len(series) < FEWEST:
        return None
    found = level_above(
        tuple((step, max(0.0, 1 - value)) for step, value in series),
        tuple((1 - limit, how) for limit, how in UNCORRELATED),
        spiky=True,
    )
    if found is None:
        return None
    confidence, level, width = found
    return Finding(
        kind="sampler mismatch",
        step=onset(series, lambda value: value <= UNCORRELATED[-1][0], width),
        evidence=f"`{log.keys.get('mismatch_correlation', 'mismatch_correlation')}`: the probabilities correlate with "
        f"{decimals(1 - level)} at the end, not with 1",
        confidence=confidence,
        advice=_ADVICE,
    )
