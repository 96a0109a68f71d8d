"""What the tables of a study read: the finished runs of a comparison, and the forms of its numbers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from aepo.analysis.compare.results import Result, measured
from aepo.analysis.compare.study import read_study
from aepo.evaluation.statistics import Interval, crossed_interval


class Runs:
    """A comparison's finished runs by label, for the seeds that are complete, and the base model's evaluation."""

    def __init__(self, file: Path, folder: Path) -> None:
        self.study = read_study(file, folder)
        self.folder = folder
        unfinished = {
            run.config.seed for run, job in zip(self.study.runs, self.study.jobs(), strict=True) if not job.finished
        }
        self.seeds = [seed for seed in self.study.seeds if seed not in unfinished]
        self.labels = [arm.label for arm in self.study.arms]

    @cache  # noqa: B019
    def of(self, label: str) -> list[Result]:
        runs = [run for run in self.study.runs if run.arm.label == label]
        return [measured(run.out) for run in runs if run.config.seed in self.seeds]

    @cache  # noqa: B019
    def base(self) -> Result:
        kept = json.loads((self.folder / "base.json").read_text())
        return Result(tuple(kept["problems"]), tuple(kept["correct"]), kept["samples"], ())

    def passes(self, label: str, k: int) -> np.ndarray:
        """[seeds, problems]."""
        if label == "base model":
            return np.stack([self.base().pass_at(k)] * len(self.seeds))
        return np.stack([result.pass_at(k) for result in self.of(label)])

    def difference(self, label: str, other: str, k: int) -> Interval:
        return crossed_interval(self.passes(label, k) - self.passes(other, k))


def end(result: Result) -> float:
    return statistics.fmean(row["entropy"] for row in result.rows[-10:])


def each(values: Sequence[float], form: str = ".2f") -> str:
    return f"{statistics.fmean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"


def spread(found: Interval) -> str:
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def table(columns: str, rows: Iterable[str]) -> list[str]:
    return [columns, "|" + "---|" * (columns.count("|") - 1), *rows, ""]
