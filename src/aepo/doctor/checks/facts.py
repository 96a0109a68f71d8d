"""Facts about a log that are no faults: distillation, and too few rows to judge."""

from __future__ import annotations

from aepo.doctor.checks.base import decimals, end, finite, start
from aepo.doctor.checks.noise import FEW
from aepo.doctor.types import Finding, Log


def distillation(log: Log) -> list[Finding]:
    """Report as a fact that a teacher gives the signal, so that equal rewards are no fault."""
    teacher = finite(log.get("teacher_kl"))
    if not teacher:
        return []
    return [
        Finding(
            kind="distillation",
            step=None,
            evidence=f"`{log.keys.get('teacher_kl', 'teacher_kl')}` went from {decimals(start(teacher))} to "
            f"{decimals(end(teacher))}: a teacher gives the signal of each token",
            confidence="sure",
            advice="no fault: rewards, groups without differences and completions at the limit are not judged here",
            serious=False,
        )
    ]


def few_rows(log: Log) -> list[Finding]:
    """Say that a log is too short: with fewer than `FEW` rows no change can be told from noise."""
    rows = max((len(series) for series in log.series.values()), default=0)
    if not 0 < rows < FEW:
        return []
    return [
        Finding(
            kind="too few rows",
            step=None,
            evidence=f"the log has {rows} {'row' if rows == 1 else 'rows'}; from {FEW} rows on a change can be told "
            "from noise",
            confidence="sure",
            advice="judge nothing by this log alone; log every step, or wait",
            serious=False,
        )
    ]


# What the main checks read -> its name in the report.
WANTED = {
    "entropy": "entropy", "reward": "reward", "dead_groups": "share of groups with equal rewards",
    "length": "length of completions", "truncated": "share of cut completions",
    "reference_kl": "KL to the reference", "approximate_kl": "KL of the updates", "gradient_norm": "gradient norm",
    "loss": "loss", "mismatch": "mismatch of sampler and trainer", "evaluation": "evaluation",
}  # fmt: skip
# Series that a check reads where the first is not in the log.
INSTEAD = {
    "dead_groups": ("no_advantage",),
    "approximate_kl": ("ratio",),
    "mismatch": ("mismatch_kl", "mismatch_probability", "mismatch_correlation"),
}


def missing(log: Log) -> list[str]:
    """Return in words what the main checks read and the log does not have, so that nothing was said about it."""
    return [
        words for name, words in WANTED.items() if not any(log.get(series) for series in (name, *INSTEAD.get(name, ())))
    ]
