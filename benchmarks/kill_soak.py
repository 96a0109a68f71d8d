"""Kills train, evaluate, compare and grade with SIGKILL at random moments, goes on, and compares with undisturbed jobs.

OMP_NUM_THREADS=1 python benchmarks/kill_soak.py [--kills 100] [--seed 0] [--out runs/kill_soak] [--only COMMAND ...]

Each command has one small built-in job. It is done once without a kill. Then it is started in a new folder, killed at a
random moment and given again, four times, and then left alone to its end; and so on with new folders. A killed command
goes on as the product says: `aepo train` names the command in its refusal of a folder that holds a run, and all others
are given again. Half of the kills hit the program alone, so that its own processes may outlive it, and half hit its
whole process group. What must be equal: the rows of a run without the wall-clock fields, its samples, its evaluations
and every file of its last checkpoint; the completions and scores of an evaluation; the graded lines. No unfinished
file may be left. The table says how many kills hit and how many results differ; differences are listed, and the exit
code is then 1.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

AEPO = (sys.executable, "-m", "aepo")
# Kills of one job before it is left alone, and the longest time that a command may take, seconds.
KILLS, LONGEST = 4, 900.0
WALL_CLOCK = ("seconds", "seconds_cpu", "seconds_sampling", "seconds_scoring", "seconds_update")
TRAIN = (
    *("--steps", "40", "--set", "threads=1", "--set", "sampling.prompts=8", "--set", "sampling.group_size=8"),
    *("--set", "evaluation.every=10", "--set", "evaluation.prompts=16", "--set", "evaluation.samples=4"),
    *("--set", "checkpoint.every=3"),
)
STUDY = """
cost = "completions"
budget = 900
methods = ["grpo", "aepo"]
targets = [0.5]
seeds = [0]
[base]
sampling.prompts = 8
sampling.group_size = 8
checkpoint.every = 2
[evaluation]
prompts = 32
samples = 16
"""
GRADED = 6000


@dataclass(frozen=True)
class Work:
    """One command with its job."""

    arguments: Callable[[Path], tuple[str, ...]]
    """The arguments of `aepo` for a folder."""
    result: Callable[[Path], dict[str, Any]]
    """What must be equal, by name, from the folder of a finished job."""


@dataclass
class Count:
    """What happened to one command."""

    jobs: int = 0
    kills: int = 0
    seconds: float = 0.0
    """The time of the undisturbed job."""
    faults: list[str] = field(default_factory=list)


# --- what must be equal -------------------------------------------------------------------------------------


def rows(file: Path, without: tuple[str, ...] = WALL_CLOCK) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in without} for row in found]


def run_result(run: Path) -> dict[str, Any]:
    checkpoints = sorted((run / "checkpoints").iterdir(), key=lambda path: int(path.name.removeprefix("step-")))
    last = {f"{checkpoints[-1].name}/{file.name}": file.read_bytes() for file in checkpoints[-1].iterdir()}
    kept = {"checkpoints": [path.name for path in checkpoints], **last}
    texts = {name: (run / name).read_text() for name in ("samples.jsonl", "evaluations.jsonl")}
    return {"metrics.jsonl": rows(run / "metrics.jsonl"), **texts, **kept}


def evaluation_result(folder: Path) -> dict[str, Any]:
    scores = json.loads((folder / "evaluation.json").read_text())
    return {"samples.jsonl": (folder / "samples.jsonl").read_text(), **{k: scores[k] for k in ("settings", "results")}}


def comparison_result(folder: Path) -> dict[str, Any]:
    arms = json.loads((folder / "comparison.json").read_text())["arms"]
    numbers = {label: {n: v for n, v in arm.items() if n != "seconds_cpu"} for label, arm in arms.items()}
    runs = [run for run in sorted(folder.iterdir()) if run.is_dir()]
    found = {f"{run.name}/{name}": value for run in runs for name, value in run_result(run).items()}
    return {"arms": numbers, "base.json": (folder / "base.json").read_text(), **found}


def graded_result(folder: Path) -> dict[str, Any]:
    return {"graded": (folder / "graded.jsonl").read_text()}


def works(out: Path) -> dict[str, Work]:
    """Write what the jobs read, and return them."""
    study, answers = out / "study.toml", out / "answers.jsonl"
    study.write_text(STUDY)
    draw = random.Random(0)
    with answers.open("w") as file:
        for _ in range(GRADED):
            top, bottom = draw.randrange(1, 99), draw.randrange(1, 99)
            said = rf"So it is \boxed{{\frac{{{top}}}{{{bottom}}}}}."
            known = f"{top}/{bottom}" if draw.random() < 0.5 else f"{bottom}/{top}"
            file.write(json.dumps({"completion": said, "answer": known}) + "\n")
    return {
        "train": Work(lambda to: ("train", *TRAIN, "--out", str(to)), run_result),
        "evaluate": Work(
            lambda to: ("evaluate", "builtin", "--n", "512", "--limit", "60", "--out", str(to)), evaluation_result
        ),
        "compare": Work(lambda to: ("compare", str(study), "--out", str(to)), comparison_result),
        "grade": Work(
            lambda to: ("grade", str(answers), "--processes", "1", "--out", str(to / "graded.jsonl")), graded_result
        ),
    }


# --- killing and going on -----------------------------------------------------------------------------------


def start(arguments: tuple[str, ...], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen([*AEPO, *arguments], stdout=file, stderr=file, start_new_session=True)


def finished(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code of a process that is left alone; None if it hangs."""
    try:
        return process.wait(LONGEST)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None


def told(log: Path) -> tuple[str, ...] | None:
    """The command that goes on, from what the product said; None if it named none."""
    named = re.search(r"go on with:? aepo (.*?)\)?$", log.read_text(errors="replace").strip())
    return tuple(shlex.split(named[1])) if named else None


def disturbed(work: Work, folder: Path, seconds: float, draw: random.Random, most: int, count: Count) -> str | None:
    """Do a job with at most `most` kills. Return what went wrong before its end, or None."""
    arguments, log, left = work.arguments(folder), folder.with_suffix(".log"), most
    while True:
        process = start(arguments, log)
        try:
            code: int | None = process.wait(draw.uniform(0, seconds) if left else LONGEST)
        except subprocess.TimeoutExpired:
            alone = left > 0 and draw.random() < 0.5
            (os.kill if alone else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
            if not left:
                return f"hung for {LONGEST:.0f} s"
            left, count.kills = left - 1, count.kills + 1
            continue
        if code == 2 and (named := told(log)) not in (None, arguments):
            arguments = named or arguments
        elif code != 0:
            return f"ended with {code}: {log.read_text(errors='replace')[-400:]}"
        else:
            return None


def differences(work: Work, folder: Path, whole: dict[str, Any]) -> Iterator[str]:
    found = work.result(folder)
    for name in sorted({*whole, *found}):
        if whole.get(name) != found.get(name):
            yield f"{folder.name}: {name} differs"
    for path in folder.rglob("*"):
        if path.name.endswith(".partial"):
            yield f"{folder.name}: {path.relative_to(folder)} was left"


def soak(name: str, work: Work, out: Path, kills: int, draw: random.Random) -> Count:
    count, whole = Count(), out / f"{name}-whole"
    for try_ in ("first", "timed"):  # the first one also fills the caches
        shutil.rmtree(whole, ignore_errors=True)
        begun = time.monotonic()
        code = finished(start(work.arguments(whole), out / f"{name}-{try_}.log"))
        count.seconds = time.monotonic() - begun
        if code != 0:
            raise SystemExit(f"{name}: the undisturbed job ended with {code}; see {out / f'{name}-{try_}.log'}")
    expected = work.result(whole)
    while count.kills < kills:
        folder = out / f"{name}-{count.jobs}"
        most = min(KILLS, kills - count.kills)
        count.jobs += 1
        wrong = disturbed(work, folder, count.seconds, draw, most, count)
        found = [f"{folder.name}: {wrong}"] if wrong else list(differences(work, folder, expected))
        count.faults += found
        print(f"{name}: {count.kills} of {kills} kills, {len(count.faults)} faults", *found, sep="\n  ", flush=True)
        if not found:
            shutil.rmtree(folder)
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kill_soak"))
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    out = given.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    chosen = {name: work for name, work in works(out).items() if name in (given.only or [name])}
    counts = {}
    for place, (name, work) in enumerate(chosen.items()):
        share = given.kills * (place + 1) // len(chosen) - given.kills * place // len(chosen)
        counts[name] = soak(name, work, out, share, random.Random(f"{given.seed} {name}"))
    print("\n| command | seconds undisturbed | jobs | kills | differences |\n| --- | --- | --- | --- | --- |")
    for name, count in counts.items():
        print(f"| {name} | {count.seconds:.0f} | {count.jobs} | {count.kills} | {len(count.faults)} |")
    sys.exit(any(count.faults for count in counts.values()))


if __name__ == "__main__":
    main()
