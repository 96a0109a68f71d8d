"""`launch` starts several runs, each in its own process. By default as many run at once as there are cores."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from aepo.bars import Bar
from aepo.config import make_config
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.folder import METRICS, being_written, cpu_count, read_rows

# Seconds between two looks at the logs of the runs, and the parts of a whole.
LOOK_EVERY, PARTS = 3.0, 100


@dataclass(frozen=True)
class Job:
    """`Job` describes one run of `aepo train` in its own process.

    Each process uses one thread, because several runs side by side scale better than one run with several threads.
    """

    out: Path
    """The run folder."""
    arguments: tuple[str, ...]
    """Arguments of `aepo train`, without those for the steps, the threads and the run folder."""
    steps: int
    """The largest number of steps of the run."""
    budget: tuple[str, int] | None = None
    """The budget that also ends the run, if `arguments` set one: ("completions" or "tokens", number)."""

    @property
    def finished(self) -> bool:
        """Whether the run has its last checkpoint: that of its last step, or one at which the budget is used up."""
        saved = steps_saved(self.out)
        if not saved or self.steps in saved or self.budget is None:
            return self.steps in saved
        unit, number = self.budget
        state = json.loads((self.out / FOLDER / f"step-{saved[-1]}" / "state.json").read_text())
        return bool(state[unit] >= number)

    def command(self) -> list[str]:
        """Return the command that starts the run, or resumes it if its folder exists, up to this number of steps."""
        config = self.out / "config.toml"
        if config.exists():
            longer = self.budget is None and make_config(config).steps != self.steps
            arguments = ["--resume", str(self.out), *(("--steps", str(self.steps)) if longer else ())]
        else:
            fixed = ("--steps", str(self.steps), "--set", "threads=1", "--out", str(self.out))
            arguments = [*self.arguments, *fixed]
        return [sys.executable, "-m", "aepo", "train", *arguments]


def launch(jobs: Sequence[Job], at_once: int | None = None) -> None:
    """Run all jobs that are not finished.

    Args:
        jobs: The runs.
        at_once: Number of processes at the same time; None means the number of cores.

    Raises:
        SystemExit: A run failed. The message holds the last line of its output.
    """
    with ThreadPoolExecutor(at_once or cpu_count()) as pool:
        pending = {pool.submit(_run, job) for job in jobs if not job.finished}
        with Bar(PARTS, "%", sum(map(_done, jobs)) // len(jobs)) as bar:
            while pending:
                done, pending = wait(pending, timeout=LOOK_EVERY, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                finished = sum(job.finished for job in jobs)
                bar.reach(sum(map(_done, jobs)) // len(jobs), f"{finished} of {len(jobs)} runs finished")


def _done(job: Job) -> int:
    """Return the share of the run that is done, in percent. The steps and costs come from the run's own log."""
    if job.finished:
        return PARTS
    rows = read_rows(job.out / METRICS)
    share = len(rows) / job.steps
    if job.budget is not None:
        unit, number = job.budget
        share = max(share, sum(row.get(unit) or 0 for row in rows) / number)
    return min(PARTS - 1, int(PARTS * share))


def _run(job: Job) -> None:
    # A process of an earlier launch may still write this run. Wait until it ends.
    while being_written(job.out):
        time.sleep(1.0)
    if job.finished:
        return
    result = subprocess.run(job.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        last = (result.stdout.strip().splitlines() or ["no output"])[-1]
        raise SystemExit(f"aepo: {job.out}: {last}")
