"""The checks: pure functions from a log to findings."""

from __future__ import annotations

from collections.abc import Callable

from aepo.doctor.checks import entropy, sampler, signal, stability
from aepo.doctor.types import Finding, Log

Check = Callable[[Log], list[Finding]]

CHECKS: tuple[Check, ...] = (
    stability.not_finite,
    entropy.collapse,
    entropy.few_distinct,
    entropy.explosion,
    stability.leap,
    stability.gradient,
    stability.reward_lost,
    signal.dead_groups,
    signal.truncation,
    sampler.mismatch,
    signal.idle,
    signal.beyond_authority,
    signal.target_missed,
    stability.after_resume,
    entropy.impossible,
    entropy.meaning,
)


def examine(log: Log) -> list[Finding]:
    """Return the findings of all checks in the order of `CHECKS`: problems that harm a run stand first."""
    return [finding for check in CHECKS for finding in check(log)]
