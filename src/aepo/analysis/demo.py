"""`demo` makes a figure and a table: the entropy of GRPO falls, and AEPO holds the entropy at its targets.

The built-in model shows it in minutes. A pretrained model shows it on the task `sentences`, which takes hours on two
cores: so that demonstration first measures a step, says how long the rest takes, and keeps to a budget of minutes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from aepo.analysis.tracking import tracking
from aepo.bars import duration
from aepo.config import Config, PolicyConfig, default_config, make_config
from aepo.errors import InvalidValue, require
from aepo.model.encoding import Encoding
from aepo.model.loading import load_language
from aepo.model.policy import Policy
from aepo.plugins import absolute
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.folder import METRICS, check_folder, cpu_count, read_rows, write_atomically
from aepo.training.plot import figure, save
from aepo.training.processes import Job, launch
from aepo.training.runner import evaluate_policy, model_folder

# The built-in task can reach these targets. docs/decisions.md has the measurements.
TARGETS = ("0.4", "0.6", "0.8")
PROBLEMS, SAMPLES = 128, 256

# A pretrained model: its targets, its steps, and what is evaluated. docs/demo.md says why.
MODEL_TARGETS = ("0.8x", "0.6x")
MODEL_STEPS, MODEL_PROBLEMS, MODEL_SAMPLES = 60, 48, 16
# The temperatures are those of the paper; a sentence that is drawn at 1.5 is hardly ever right.
AEPO_SETTINGS = ("control.distribution.high=1.2", "control.distribution.low=0.8")
MODEL_SETTINGS = (
    *("task=sentences", "policy.lora_rank=16", "optimizer.lr=5e-4", "optimizer.warmup=0", "optimizer.minibatches=2"),
    *("sampling.prompts=8", "sampling.group_size=8", "evaluation.every=0", "checkpoint.minutes=5", "checkpoint.keep=1"),
)
# The share of extra completions that is expected of AEPO's runs before they show their own.
EXPECTED_EXTRA = 0.25
# Rounds are no shorter than this, seconds: each one loads the model again.
SHORTEST_ROUND = 1800.0
SCORES = "scores.json"


@dataclass(frozen=True)
class Evaluated:
    """`Evaluated` says how many held-out problems are evaluated, and on how many completions each."""

    problems: int
    """Number of problems."""
    samples: int
    """Completions of each problem."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the columns of the table."""
        return ("run", "target", "entropy", "RMSE", "/ floor", "extra", "pass@1", f"pass@{self.samples}")

    @property
    def caption(self) -> str:
        """Return what the columns mean."""
        return (
            "target, entropy and RMSE: nats per token, over the last third of the steps; / floor: RMSE as a multiple "
            "of the readings' own standard error; extra: completions drawn by the control beside the ordinary ones; "
            f"pass@k: unbiased, {self.samples} samples of each of {self.problems} held-out problems at T = 1"
        )


def demo(out: Path, steps: int, seed: int) -> None:
    """Start or continue the four runs on the built-in model, and write figure.png, figure.svg and table.md into `out`.

    Args:
        out: The folder of the runs, the figure and the table.
        steps: Steps of each run.
        seed: Seed of each run.
    """
    _check(out, steps)
    config = default_config()
    policy = Policy.load(model_folder(config))
    base = evaluate_policy(policy, config, PROBLEMS, SAMPLES)
    print(f"{len(TARGETS) + 1} runs of {steps} steps, {cpu_count()} at once", flush=True)
    jobs = {
        label: evaluated_job(out / f"{name}-seed{seed}-{steps}", arguments, steps, seed)
        for label, name, arguments in _arms(TARGETS)
    }
    launch(list(jobs.values()))
    runs = {label: read_rows(job.out / METRICS) for label, job in jobs.items()}
    scores = {"base": base.row(), **{label: rows[-1]["evaluation"] for label, rows in runs.items()}}
    _show(out, runs, scores, Evaluated(PROBLEMS, SAMPLES))


def demo_model(out: Path, model: str, steps: int, seed: int, minutes: float | None = None) -> None:
    """Start or continue GRPO and AEPO at two targets on a pretrained model, and write the figure and the table.

    The first step of all runs is measured, and the expected time is printed. Then all runs do the same number of steps:
    `steps`, or as many as `minutes` allow. A demonstration that was killed goes on where it was.

    Args:
        out: The folder of the runs, the figure and the table.
        model: A folder or a name of a model.
        steps: The largest number of steps of each run.
        seed: Seed of each run.
        minutes: Minutes that all runs together may take, with the evaluations; None for no limit.

    Raises:
        InvalidValue: The model cannot be used, or the folder holds runs of another model.
    """
    _check(out, steps)
    require(minutes is None or minutes > 0, "--minutes", minutes, "a positive number of minutes")
    settings = (*MODEL_SETTINGS, f"model={absolute(model)}", *_style(model))
    config = make_config(method="grpo", overrides={"seed": seed}, settings=settings)
    shared = ("--seed", str(seed), *_flags(settings))
    folders = {
        label: (out / f"{name}-seed{seed}", (*arguments, *shared))
        for label, name, arguments in _arms(MODEL_TARGETS, AEPO_SETTINGS)
    }
    _check_model(out, [folder for folder, _ in folders.values()], config.model)

    def jobs(count: int) -> list[Job]:
        return [Job(folder, arguments, count) for folder, arguments in folders.values()]

    _do_steps(jobs, steps, minutes, Evaluated(MODEL_PROBLEMS, MODEL_SAMPLES))
    runs = {label: read_rows(folder / METRICS) for label, (folder, _) in folders.items()}
    scores = _evaluated(out, config, {label: folder for label, (folder, _) in folders.items()})
    _show(out, runs, scores, Evaluated(MODEL_PROBLEMS, MODEL_SAMPLES))


def _arms(targets: Sequence[str], settings: Sequence[str] = ()) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return the label, the name of the folder and the arguments of each run.

    Args:
        targets: The targets of AEPO's runs.
        settings: Further settings of AEPO's runs.
    """
    own = _flags(settings)
    held = [(f"AEPO {to}", f"aepo-{to}", ("--method", "aepo", "--target", to, *own)) for to in targets]
    return [("GRPO", "grpo", ("--method", "grpo")), *held]


def _flags(settings: Sequence[str]) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def _check(out: Path, steps: int) -> None:
    require(steps >= 1, "--steps", steps, "at least 1")
    check_folder("--out", out)


def evaluated_job(folder: Path, arguments: tuple[str, ...], steps: int, seed: int) -> Job:
    """Return a job whose run is evaluated once, at its end, in the same way as the base model."""
    evaluation = ("every=1000000", "first=false", f"prompts={PROBLEMS}", f"samples={SAMPLES}")
    settings = [f"evaluation.{setting}" for setting in evaluation]
    return Job(folder, (*arguments, "--seed", str(seed), *_flags(settings)), steps)


# --- a pretrained model ---------------------------------------------------------------------------------------


def _style(model: str) -> tuple[str, ...]:
    """Return the settings of the prompts that fit the model's tokenizer."""
    encoding = Encoding(load_language(model, PolicyConfig()).tokenizer, model)
    if not encoding.tokenizer.chat_template:
        return ("task.style=plain",)
    try:
        encoding.chat([("system", ""), ("user", "Hello")])
    except InvalidValue:
        return ("task.system_prompt=none",)
    return ()


def _check_model(out: Path, folders: Sequence[Path], model: str) -> None:
    """Refuse a folder with runs of another model."""
    for config in (folder / "config.toml" for folder in folders):
        known = make_config(config).model if config.is_file() else model
        require(known == model, "--out", str(out), f"a folder without runs of another model ({known})")


def _do_steps(jobs: Callable[[int], list[Job]], most: int, minutes: float | None, evaluated: Evaluated) -> None:
    """Let all runs do the same number of steps: `most`, or as many as the minutes allow, but at least one.

    Args:
        jobs: Returns the jobs of all runs for a number of steps.
        most: The largest number of steps.
        minutes: Minutes for the steps and the evaluations; None for no limit.
        evaluated: What is evaluated afterwards.
    """
    begun, said = time.monotonic(), False
    first = Pace.read(jobs(1))
    before, done = first.spent, first.steps
    if done == 0:
        print("measuring one step of each run ...", flush=True)
    while done < most:
        count = 1
        if done > 0:
            pace = Pace.read(jobs(1))
            evaluation = pace.evaluation(evaluated)
            if not said:
                said = True
                print(_expected(pace, most, minutes, evaluated), flush=True)
            left = math.inf if minutes is None else 60 * minutes - before - (time.monotonic() - begun) - evaluation
            # Runs that were killed may have got to different steps: the last ones catch up.
            count = max(pace.farthest, next_count(done, most, left, pace.step))
        if count == done:
            return
        launch(jobs(count), at_once(len(jobs(1))))
        done = count


def at_once(runs: int) -> int:
    """Return how many runs share the machine: one on a GPU, else all of them, so that every core works all the time."""
    return 1 if torch.cuda.is_available() else runs


def next_count(done: int, most: int, left: float, step: float) -> int:
    """Return the number of steps up to which all runs go next; `done` if no further step fits.

    Half of what fits is done first, so that the second half is planned at the pace of the first.

    Args:
        done: The number of steps that all runs have done.
        most: The largest number of steps.
        left: Seconds that are left; infinity for no limit.
        step: Seconds that one step of all runs takes.

    >>> next_count(1, 60, math.inf, 100.0)
    60
    >>> next_count(1, 60, 7200.0, 600.0)
    7
    >>> next_count(7, 60, 1900.0, 600.0)
    10
    """
    if left == math.inf:
        return most
    fit = min(most - done, int(left / step)) if step > 0 else most - done
    return done + (max(1, fit // 2) if fit * step > 2 * SHORTEST_ROUND else max(0, fit))


@dataclass(frozen=True)
class Pace:
    """`Pace` says how fast the runs were so far."""

    steps: int
    """Steps that every run has done."""
    farthest: int
    """Steps that some run has done."""
    spent: float
    """Seconds of all steps, as time on the clock."""
    step: float
    """Seconds that one step of all runs takes, on the clock."""
    completion: float
    """Seconds for the sampling of one completion."""

    @classmethod
    def read(cls, jobs: Sequence[Job]) -> Pace:
        """Return the pace of some runs, from their logs. Newer steps tell it: their last ten."""
        logs = [read_rows(job.out / METRICS)[: saved[-1]] if (saved := steps_saved(job.out)) else [] for job in jobs]
        steps = min(map(len, logs))
        parallel = at_once(len(jobs))
        waits = math.ceil(len(jobs) / parallel)
        spent = sum(row["seconds"] for rows in logs for row in rows) / parallel
        if steps == 0:
            return cls(0, 0, spent, 0.0, 0.0)
        recent = [rows[-10:] for rows in logs]
        means = [sum(row["seconds"] for row in rows) / len(rows) for rows in recent]
        if steps == 1:  # the control has not acted yet
            means = [means[0], *(mean * (1 + EXPECTED_EXTRA) for mean in means[1:])]
        sampling = sum(row["seconds_sampling"] for rows in recent for row in rows)
        completions = sum(row["completions"] for rows in recent for row in rows)
        return cls(steps, max(map(len, logs)), spent, sum(means) / len(means) * waits, sampling / completions)

    def evaluation(self, evaluated: Evaluated) -> float:
        """Return the seconds of the evaluations of three runs and of the base model."""
        return self.completion * evaluated.problems * evaluated.samples * (len(MODEL_TARGETS) + 2)


def _expected(pace: Pace, most: int, minutes: float | None, evaluated: Evaluated) -> str:
    """Return the expected time in words."""
    evaluation = pace.evaluation(evaluated)
    rest = (most - pace.steps) * pace.step + evaluation
    runs = len(MODEL_TARGETS) + 1
    line = f"a step of all {runs} runs takes {duration(pace.step)}; {pace.steps} of {most} steps are done; expected: "
    line += f"{duration(rest)} for the rest, {duration(evaluation)} of it evaluations"
    if minutes is not None and rest > 60 * minutes - pace.spent:
        line += f"; {minutes:g} minutes allow fewer steps"
    return f"{line}. A demonstration that was stopped goes on with the same command."


def _evaluated(out: Path, config: Config, folders: Mapping[str, Path]) -> dict[str, dict[str, float]]:
    """Return the scores of the base model and of the newest checkpoint of each run. Known scores are read again."""
    places = {"base": str(model_folder(config))}
    for label, folder in folders.items():
        places[label] = str(folder / FOLDER / f"step-{steps_saved(folder)[-1]}")
    file = out / SCORES
    known: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    scores = {}
    for label, place in places.items():
        name = label if label == "base" else f"{label}, {Path(place).name}"
        if name not in known:
            print(f"evaluation of {name}: {MODEL_PROBLEMS} problems x {MODEL_SAMPLES}", flush=True)
            device = "cuda" if torch.cuda.is_available() else "cpu"
            policy = Policy.load(place, device, PolicyConfig(dtype=config.policy.dtype))
            known[name] = evaluate_policy(policy, config, MODEL_PROBLEMS, MODEL_SAMPLES).row()
            write_atomically(file, json.dumps(known, indent=2))
        scores[label] = known[name]
    return scores


# --- the figure and the table -----------------------------------------------------------------------------------


def _show(
    out: Path,
    runs: Mapping[str, Sequence[dict[str, Any]]],
    scores: Mapping[str, Mapping[str, float]],
    evaluated: Evaluated,
) -> None:
    """Write the figure and the table, and print the table."""
    save(figure(runs, "One base model, one seed, the same prompts: only the entropy control differs"), out / "figure")
    last = f"pass@{evaluated.samples}"
    table: list[tuple[str, ...]] = [("base", "", "", "", "", "", *_passes(scores["base"], last))]
    table += [(*_row(label, rows), *_passes(scores[label], last)) for label, rows in runs.items()]
    write_atomically(out / "table.md", _markdown(table, evaluated))
    _print(table, evaluated)
    print(f"figure: {out / 'figure.png'}\ntable: {out / 'table.md'}")


def _passes(scores: Mapping[str, float], last: str) -> tuple[str, str]:
    return f"{scores['pass@1']:.3f}", f"{scores[last]:.3f}"


def _row(label: str, rows: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    held = tracking(rows)
    controlled = rows[-1]["target_entropy"] is not None
    return (
        label,
        f"{rows[-1]['target_entropy']:.3f}" if controlled else "",
        f"{held.last_third_entropy:.3f}",
        f"{held.last_third_rmse:.3f}" if controlled else "",
        f"{held.of_floor:.2f}" if controlled else "",
        f"{held.extra_share:+.0%}" if controlled else "",
    )


def _markdown(table: Sequence[tuple[str, ...]], evaluated: Evaluated) -> str:
    lines = [evaluated.columns, ("---",) * len(evaluated.columns), *table]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines) + f"\n{evaluated.caption}.\n"


def _print(table: Sequence[tuple[str, ...]], evaluated: Evaluated) -> None:
    shown = Table(*evaluated.columns, caption=evaluated.caption)
    for line in table:
        shown.add_row(*line)
    Console().print(shown)
