"""Checks of the KL to the reference model: not zero where the run starts, and growing."""

from __future__ import annotations

from aepo.doctor.checks.base import decimals, finite, onset, start
from aepo.doctor.checks.noise import FEW, Limits, capped, level_above
from aepo.doctor.types import Finding, Log, LogSeries

# Nats per token at the first logged step. The policy equals its reference there, so that rounding alone is left.
AT_FIRST: Limits = ((0.5, "sure"), (0.1, "likely"), (0.03, "possible"))
# Nats per token, as a level at the end. Sound runs stay below half a nat.
FAR: Limits = ((5.0, "sure"), (1.0, "likely"), (0.3, "possible"))
# The level at the end is this multiple of the start, or more; else the KL is where it began.
GREW = 3.0
_REFERENCE = (
    "the reference model is not the model that the run starts from: look at its path, adapter and precision, at "
    "dropout, and whether it scores the same prompt and temperature"
)


def reference(log: Log) -> list[Finding]:
    """Find a KL to the reference that is not 0 at the first step, or whose level grows far."""
    series = tuple((step, abs(value)) for step, value in finite(log.get("reference_kl")))
    return _at_first(log, series) + _grown(log, series) if series else []


def _at_first(log: Log, series: LogSeries) -> list[Finding]:
    step, value = series[0]
    level = min(value, start(series))
    confidence = next((how for limit, how in AT_FIRST if level >= limit), None)
    if confidence is None or step > 1 or log.resumes[:1] == (step,):
        return []
    return [
        Finding(
            kind="KL to the reference is not 0 at the start",
            step=step,
            evidence=f"`{log.keys.get('reference_kl')}` is {decimals(value)} nats per token at the first step",
            confidence=capped(confidence, len(series)),
            advice=_REFERENCE,
        )
    ]


def _grown(log: Log, series: LogSeries) -> list[Finding]:
    found = level_above(series, FAR, spiky=True)
    if found is None or len(series) < FEW:
        return []
    confidence, level, width = found
    before = start(series)
    if level < GREW * before:
        return []
    return [
        Finding(
            kind="KL to the reference grows",
            step=onset(series, lambda value: value >= FAR[-1][0], width),
            evidence=f"`{log.keys.get('reference_kl')}` rose from {decimals(before)} to {decimals(level)} "
            "nats per token",
            confidence=confidence,
            advice="the policy is far from the reference: raise the KL coefficient or lower the learning rate; read "
            "completions for hacked rewards and broken language; go back to a checkpoint from before this step",
        )
    ]
