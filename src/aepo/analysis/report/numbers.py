"""This module computes the tables of the report: a row for each run, and a row for each group of repeated runs.

It also lists what is missing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from aepo.analysis.report.runs import Curve, RunRecord, run_curve
from aepo.analysis.tracking import SETTLED, Tracking, tracking
from aepo.evaluation.statistics import Interval, column_intervals
from aepo.training.folder import is_number

# Each row must have these numbers. Otherwise the tracking of the target cannot be computed.
TRACKED = ("entropy", "completions", "extra_completions")


@dataclass(frozen=True)
class Cell:
    """`Cell` is the text of one cell of a table, with its sort key."""

    text: str
    """The text that is shown."""
    order: float | str
    """The sort key: a number (NaN comes last) or the text itself."""


@dataclass(frozen=True)
class Table:
    """`Table` holds rows of cells under named columns."""

    columns: Sequence[str]
    """The names of the columns."""
    rows: Sequence[Sequence[Cell]]
    """The rows. Each row has a cell for each column."""
    caption: str
    """The caption. It says how the numbers were computed."""


def over_runs(values: Sequence[float]) -> Interval:
    """Return the mean of the values that are not NaN, with its bootstrap interval over the runs."""
    known = np.array([value for value in values if not math.isnan(value)], dtype=np.float64)
    return column_intervals(known[:, None], seed=0)[0] if len(known) else Interval(math.nan)


@dataclass(frozen=True)
class Group:
    """`Group` holds runs that differ only in their seed and the other settings in `REPEATS`."""

    label: str
    """The name of the group."""
    runs: Sequence[RunRecord]
    """The runs of the group."""

    def interval(self, key: str) -> Interval:
        """Return the mean over the runs. Each run counts with its mean over the last third of its rows."""
        return over_runs([run.last_third(key) for run in self.runs])

    def pass_at(self, k: int) -> Interval:
        """Return the mean over the runs of pass@k in the last evaluation."""
        return over_runs([score(run, k) for run in self.runs])

    def curve(self) -> Curve | None:
        """Return pass@k of the last evaluations. It has intervals if several runs were evaluated."""
        curves = [curve for run in self.runs if (curve := run_curve(run))]
        if not curves:
            return None
        ks = sorted(set.intersection(*(set(curve.ks) for curve in curves)))
        over = [self.pass_at(k) for k in ks]
        bounds = ([i.low for i in over], [i.high for i in over]) if len(curves) > 1 else ((), ())
        return Curve(curves[0].about, ks, [i.mean for i in over], *bounds)


def groups(runs: Sequence[RunRecord]) -> list[Group]:
    """Group the runs that have the same settings. The groups are in the order of their first runs."""
    found: dict[str, list[RunRecord]] = {}
    for run in runs:
        found.setdefault(run.repeats(), []).append(run)
    names = [f"{members[0].method} {members[0].target}".strip() for members in found.values()]
    return [
        Group(name if names.count(name) == 1 and members[0].config else members[0].label, members)
        for name, members in zip(names, found.values(), strict=True)
    ]


def score(run: RunRecord, k: int) -> float:
    """Return pass@k of the last evaluation, or NaN without an evaluation."""
    last = run.evaluation()
    value = last[1].get(f"pass@{k}") if last else None
    return float(value) if value is not None and is_number(value) else math.nan


def largest_k(runs: Sequence[RunRecord]) -> int:
    """Return the largest k for which every evaluated run has pass@k. It is 1 if there is no such k."""
    ks = [set(curve.ks) for run in runs if (curve := run_curve(run))]
    return max(set.intersection(*ks), default=1) if ks else 1


def held(run: RunRecord) -> Tracking | None:
    """Return how well the run tracked its target, or None without rows or if a row lacks a number for it."""
    complete = all("error" in row and all(is_number(row.get(key)) for key in TRACKED) for row in run.rows)
    return tracking(run.rows) if run.rows and complete else None


def run_table(runs: Sequence[RunRecord]) -> Table:
    """Return the table with one row for each run."""
    k = largest_k(runs)
    ks = (1,) if k == 1 else (1, k)
    columns = ("run", "method", "target", "seed", "steps", "entropy", "error", "RMSE", "/ floor", "settled", "reward")
    caption = (
        "entropy, reward: means of the last third of the steps, nats per token for the entropy; error (target minus "
        "entropy, mean) and RMSE: nats, after settling; / floor: RMSE of the last third as a multiple of the "
        "readings' own standard error; settled: the step after which the error stays within "
        f"{SETTLED:g} nats; pass@k: unbiased, of the last evaluation; extra: completions drawn by the control, as a "
        "share of the ordinary ones; seconds: wall clock of all steps, without evaluation"
    )
    rows = [[*_about(run), *_held(run), *(_number(score(run, k)) for k in ks), *_cost(run)] for run in runs]
    return Table((*columns, *(f"pass@{k}" for k in ks), "extra", "seconds"), rows, caption)


def _about(run: RunRecord) -> list[Cell]:
    done = len(run.rows)
    shown = f"{done} of {run.steps}"
    if run.steps is None or run.finished:
        shown = f"{done}, budget reached" if run.stopped_early else f"{done}"
    steps = Cell(shown, done)
    seed = Cell("", math.nan) if run.seed is None else Cell(str(run.seed), run.seed)
    return [Cell(run.label, run.label), Cell(run.method, run.method), Cell(run.target, run.target), seed, steps]


def _held(run: RunRecord) -> list[Cell]:
    kept = held(run)
    settled = Cell("", math.nan)
    if kept and run.series("error")[1]:
        never = kept.settling_step is None
        settled = Cell("never", math.inf) if never else Cell(str(kept.settling_step), float(kept.settling_step or 0))
    return [
        _number(run.last_third("entropy")),
        _number(kept.mean_error if kept else math.nan, "+.3f"),
        _number(kept.rmse if kept else math.nan),
        _number(kept.of_floor if kept else math.nan, ".2f"),
        settled,
        _number(run.last_third("reward")),
    ]


def _cost(run: RunRecord) -> list[Cell]:
    kept, seconds = held(run), run.series("seconds")[1]
    share = _number(kept.extra_share if kept else math.nan, ".0%")
    return [share, _number(math.fsum(seconds) if seconds else math.nan, ".1f")]


def _number(value: float, form: str = ".3f") -> Cell:
    return Cell("" if math.isnan(value) else format(value, form), value)


def group_table(found: Sequence[Group], k: int) -> Table | None:
    """Return the table of means over the runs of each group, with intervals. It is None if no group has two runs."""
    if all(len(group.runs) < 2 for group in found):
        return None
    ks = (1,) if k == 1 else (1, k)
    rows = []
    for group in found:
        over = [group.interval("entropy"), group.interval("reward"), *(group.pass_at(k) for k in ks)]
        size = Cell(str(len(group.runs)), len(group.runs))
        rows.append([Cell(group.label, group.label), size, *map(_interval, over)])
    caption = (
        "mean and 95 % interval by bootstrap over runs; of two or three runs it is hardly more than their range, and "
        "too narrow; a single run has none"
    )
    return Table(
        ("runs alike but for the seed", "runs", "entropy", "reward", *(f"pass@{k}" for k in ks)), rows, caption
    )


def _interval(over: Interval) -> Cell:
    bounds = "" if over.low is None else f" ({over.low:.3f} to {over.high:.3f})"
    return Cell(f"{_number(over.mean).text}{bounds}", over.mean)


def differences(runs: Sequence[RunRecord]) -> Table | None:
    """Return the table of the settings that differ between the runs. It is None if no setting differs."""
    known = [run for run in runs if run.config]
    flat = [dict(_flat(run.config)) for run in known]
    names = list(dict.fromkeys(name for settings in flat for name in settings))
    different = [name for name in names if len({settings[name] for settings in flat if name in settings}) > 1]
    if not different:
        return None
    cells = [[Cell(name, name), *(Cell(s.get(name, ""), s.get(name, "")) for s in flat)] for name in different]
    return Table(("setting", *(run.label for run in known)), cells, "settings in which the runs differ")


def _flat(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, str]]:
    pairs = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{path}{key}.")
        else:
            pairs.append((f"{path}{key}", value if isinstance(value, str) else json.dumps(value, default=str)))
    return pairs


def missing(runs: Sequence[RunRecord]) -> list[str]:
    """Return a sentence for each number or file that a run does not have."""
    said = []
    for run in runs:
        if not run.config:
            said.append(f"{run.label}: no config.toml, so method, target and planned steps are unknown")
        if not run.rows:
            said.append(f"{run.label}: no finished step yet")
            continue
        if run.steps is not None and not run.finished:
            said.append(f"{run.label}: {len(run.rows)} of {run.steps} steps so far")
        if run.evaluation() is None:
            said.append(f"{run.label}: no evaluation, so no pass@k")
        if not any(row.get("entropy_by_position") for row in run.rows):
            said.append(f"{run.label}: no entropy by position (its metrics lack entropy_by_position)")
        absent = [key for key in ("entropy", "reward", "seconds") if not run.series(key)[1]]
        if absent:
            said.append(f"{run.label}: its metrics lack {', '.join(absent)}")
        if held(run) is None:
            said.append(f"{run.label}: rows lack a number that error, settling and extra share are made of")
    return said
