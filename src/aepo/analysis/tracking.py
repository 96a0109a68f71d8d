"""`tracking` measures how well a run held its target: the error, when it settled, and the error after that.

It reads rows of metrics.jsonl and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A run has settled at the first step from which |error| stays at most this many nats.
SETTLED = 0.1


@dataclass(frozen=True)
class Tracking:
    """`Tracking` says how well a run held its target."""

    settling_step: int | None
    """The step at which the run settled (see `SETTLED`). None if the run never settled."""
    mean_error: float
    """The mean error in nats, from the settling step to the end. NaN if the run never settled."""
    rmse: float
    """The root mean square error in nats, from the settling step to the end. NaN if the run never settled."""
    last_third_entropy: float
    """The mean entropy over the last third of the steps, in nats per token."""
    last_third_rmse: float
    """The root mean square error over the last third of the steps, in nats, whether the run settled or not."""
    floor: float
    """The root mean square of the readings' standard errors over the last third of the steps, in nats. A run that holds
    its entropy exactly has about this `last_third_rmse` (docs/entropy.md). NaN if the rows lack it.
    """
    extra_share: float
    """The number of extra completions divided by the number of ordinary ones. NaN if there is no ordinary one."""
    saturated: float
    """The share of steps in which the control was at its limit. NaN if a row lacks this field."""

    @property
    def of_floor(self) -> float:
        """Return the RMSE of the last third of the steps as a multiple of the floor."""
        return self.last_third_rmse / self.floor


def tracking(rows: Sequence[Mapping[str, Any]], target: float | None = None) -> Tracking:
    """Return how well a run held its target.

    The error is measured from the run's own target. A row without an error is compared with `target`. A step that was
    skipped has no entropy and does not count.

    Args:
        rows: The rows of metrics.jsonl.
        target: The target in nats per token for rows without an error. None means that these rows have no error.
    """
    ordinary = sum(row["completions"] - row["extra_completions"] for row in rows)
    extra = sum(row["extra_completions"] for row in rows)
    rows = [row for row in rows if row["entropy"] is not None]
    errors = [_error(row, target) for row in rows]
    settled = settling_index(errors)
    after = errors[settled:] if settled is not None else []
    last = rows[2 * len(rows) // 3 :]
    return Tracking(
        settling_step=None if settled is None else rows[settled]["step"],
        mean_error=_mean(after),
        rmse=_rms(after),
        last_third_entropy=_mean([row["entropy"] for row in last]),
        last_third_rmse=_rms(errors[2 * len(rows) // 3 :]),
        floor=_rms([row.get("entropy_se") or math.nan for row in last]),
        extra_share=extra / ordinary if ordinary > 0 else math.nan,
        saturated=_mean([row.get("saturated", math.nan) or 0.0 for row in rows]),
    )


def settling_index(errors: Sequence[float]) -> int | None:
    """Return the index from which every |error| is at most `SETTLED`.

    The result is None if the last error is larger than `SETTLED`, or NaN.
    """
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
