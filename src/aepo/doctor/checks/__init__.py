"""The checks: pure functions from a log to findings."""

from __future__ import annotations

from collections.abc import Callable

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


def examine(log: Log) -> list[Finding]:
    """Return the findings of all checks in the order of `CHECKS`: problems that harm a run stand first."""
    return [finding for check in CHECKS for finding in check(log)]
