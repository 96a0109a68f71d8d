"""The checks: pure functions from a log to findings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from aepo.doctor.checks import entropy, facts, length, reference, reward, sampler, signal, spikes, stability
from aepo.doctor.types import Finding, Log

Check = Callable[[Log], list[Finding]]

CHECKS: tuple[Check, ...] = (
    stability.not_finite,
    entropy.collapse,
    entropy.dip,
    entropy.few_distinct,
    entropy.explosion,
    stability.leap,
    stability.gradient,
    spikes.spikes,
    reward.reward_lost,
    reward.flat,
    reward.drifting_apart,
    reference.reference,
    signal.dead_groups,
    length.truncation,
    length.length,
    sampler.mismatch,
    signal.idle,
    signal.beyond_authority,
    signal.target_missed,
    stability.after_resume,
    reward.solved,
    facts.distillation,
    facts.few_rows,
    entropy.impossible,
    entropy.meaning,
)


# These look at single steps; in a long log the others look at levels, for which MOST points of a series are enough.
OF_STEPS: frozenset[Check] = frozenset(
    {
        stability.not_finite,
        stability.leap,
        stability.after_resume,
        spikes.spikes,
        signal.beyond_authority,
        facts.few_rows,
    }
)
MOST = 10_000


def examine(log: Log) -> list[Finding]:
    """Return the findings of all checks in the order of `CHECKS`: problems that harm a run stand first."""
    thinned = _thinned(log)
    return [finding for check in CHECKS for finding in check(log if check in OF_STEPS else thinned)]


def _thinned(log: Log) -> Log:
    """Return the log with every n-th point of its series, so that none has more than `MOST`."""
    longest = max((len(series) for series in log.series.values()), default=0)
    stride = -(-longest // MOST)
    if stride <= 1:
        return log
    return replace(log, series={name: series[::stride] for name, series in log.series.items()})
