"""How well a run held its target: error, settling, and tracking after it. Reads metrics rows, nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Settled: the first step after which |error| stays at most this many nats.
SETTLED = 0.1


@dataclass(frozen=True)
class Tracking:
    """settling_step: None if the run never settled. mean_error and rmse (nats): from settling to the end, NaN
    without it. last_third_rmse: over the last third of the steps, settled or not. last_third_entropy: mean there.
    extra_share: extra completions drawn over ordinary ones, NaN without any ordinary one. saturated: share of steps at
    the control's limit, NaN where rows do not say.
    """

    settling_step: int | None
    mean_error: float
    rmse: float
    last_third_entropy: float
    last_third_rmse: float
    extra_share: float
    saturated: float


def tracking(rows: Sequence[Mapping[str, Any]], target: float | None = None) -> Tracking:
    """Of a run's rows, against its own target or, for a run without control, against `target` if given."""
    errors = [_error(row, target) for row in rows]
    settled = settling_index(errors)
    after = errors[settled:] if settled is not None else []
    last = rows[2 * len(rows) // 3 :]
    ordinary = sum(row["completions"] - row["extra_completions"] for row in rows)
    return Tracking(
        settling_step=None if settled is None else rows[settled]["step"],
        mean_error=_mean(after),
        rmse=_rms(after),
        last_third_entropy=_mean([row["entropy"] for row in last]),
        last_third_rmse=_rms(errors[2 * len(rows) // 3 :]),
        extra_share=sum(row["extra_completions"] for row in rows) / ordinary if ordinary > 0 else math.nan,
        saturated=_mean([row.get("saturated", math.nan) or 0.0 for row in rows]),
    )


def settling_index(errors: Sequence[float]) -> int | None:
    """The index from which every |error| is at most `SETTLED`; None if the last one is not (or is NaN)."""
    first = len(errors)
    while first > 0 and abs(errors[first - 1]) <= SETTLED:
        first -= 1
    return first if first < len(errors) else None


def _error(row: Mapping[str, Any], target: float | None) -> float:
    if row.get("error") is not None:
        return float(row["error"])
    return math.nan if target is None else target - row["entropy"]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(_mean([value**2 for value in values])) if values else math.nan
