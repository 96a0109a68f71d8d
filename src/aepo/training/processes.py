"""Several runs, each in a process of its own, as many at once as the machine has cores."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.folder import METRICS, being_written, cpu_count, read_rows

# Seconds between two lines of progress.
SAY_EVERY = 15.0


@dataclass(frozen=True)
class Job:
    """`aepo train` with these arguments, into `out`; one thread each, since runs side by side scale better.

    steps: of the run, at most. budget: what else ends it, if the arguments say so: ("completions" or "tokens", count).
    """

    out: Path
    arguments: tuple[str, ...]
    steps: int
    budget: tuple[str, int] | None = None

    @property
    def finished(self) -> bool:
        """Its last checkpoint is there."""
        saved = steps_saved(self.out)
        if not saved or self.steps in saved or self.budget is None:
            return self.steps in saved
        unit, number = self.budget
        state = json.loads((self.out / FOLDER / f"step-{saved[-1]}" / "state.json").read_text())
        return bool(state[unit] >= number)

    def command(self) -> list[str]:
        """Start it, or go on where it was."""
        if (self.out / "config.toml").exists():
            arguments = ["--resume", str(self.out)]
        else:
            fixed = ("--steps", str(self.steps), "--set", "threads=1", "--out", str(self.out))
            arguments = [*self.arguments, *fixed]
        return [sys.executable, "-m", "aepo", "train", *arguments]


def launch(jobs: Sequence[Job], at_once: int | None = None) -> None:
    """Run those that are not finished; a failed run ends the program with its last line."""
    with ThreadPoolExecutor(at_once or cpu_count()) as pool:
        pending = {pool.submit(_run, job) for job in jobs if not job.finished}
        while pending:
            done, pending = wait(pending, timeout=SAY_EVERY, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
            _say(jobs)


def _say(jobs: Sequence[Job]) -> None:
    """How far each unfinished run is, from its own log."""
    going = {job.out.name: len(read_rows(job.out / METRICS)) for job in jobs if not job.finished}
    parts = [f"{name} step {step}" for name, step in going.items() if step]
    print(f"{len(jobs) - len(going)} of {len(jobs)} runs finished", *parts, sep="; ", flush=True)


def _run(job: Job) -> None:
    # A process that outlived the program that started it goes on; it is not disturbed.
    while being_written(job.out):
        time.sleep(1.0)
    if job.finished:
        return
    result = subprocess.run(job.command(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if result.returncode:
        last = (result.stdout.strip().splitlines() or ["no output"])[-1]
        raise SystemExit(f"aepo: {job.out}: {last}")
