"""`aepo fit-law`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class FitLaw:
    """Fit R = -a exp(H) + b to one or several runs, with intervals and a held-out error (docs/compare.md)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders; one law is fitted to all of them together. Of several paths, those that are no run folder are left
    out."""
    reward: Literal["reward", "pass@1"] = "reward"
    """R: the mean reward of each step, or the pass@1 of each evaluation."""
    held_out: float = 0.3
    """The share of each run, at its end, that the fit to the rest predicts."""
    seed: int = 0
    """Seed of the bootstrap."""

    def run(self) -> None:
        """Fit the law and print it."""
        from aepo.analysis.law_fit import Points, fit_law
        from aepo.analysis.report.runs import read_runs, run_folders

        runs = read_runs(run_folders(self.runs), samples=False)
        points = [Points.of_rows(run.rows, self.reward) for run in runs]
        print(*fit_law(points, held_out=self.held_out, seed=self.seed).lines(), sep="\n")
