"""This module reads run folders and evaluation folders into frozen dataclasses. A missing key is not an error."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from aepo.analysis.compare.results import BASE_FILE, Result
from aepo.config import read_toml
from aepo.errors import InvalidValue, require
from aepo.evaluation.samples import RESULT
from aepo.evaluation.statistics import column_intervals
from aepo.training.folder import EVALUATIONS, METRICS, SAMPLES, is_number, read_metrics, read_rows

CONFIG = "config.toml"
# A constant target: a number of nats, or a multiple of the first entropy.
STEADY = re.compile(r"[\d.e+-]+x?")
# At most this many of the paths that are left out are named.
NAMED = 3
# Runs that differ only in these settings are repeats of the same experiment.
REPEATS = ("seed", "threads", "device", "checkpoint", "tracker")


@dataclass(frozen=True)
class RunRecord:
    """`RunRecord` holds the content of one run folder."""

    label: str
    """The name of the run in tables."""
    config: Mapping[str, Any]
    """The settings of the run. It is empty if there is no config.toml."""
    rows: Sequence[Mapping[str, Any]]
    """The rows of metrics.jsonl."""
    samples: Sequence[Mapping[str, Any]]
    """The rows of samples.jsonl."""

    @property
    def method(self) -> str:
        """Return the method in the config, or "?" if there is no config."""
        return str(self.config.get("method", "?"))

    @property
    def target(self) -> str:
        """Return the target as it is written in the config, such as 0.6x. It is empty for a method without a target."""
        control = self._table("control")
        parts = [control, *(part for part in control.values() if isinstance(part, Mapping))]
        return next((str(part["target"]) for part in parts if "target" in part), "")

    @property
    def task(self) -> str:
        """Return the name of the task. It is empty if there is no config."""
        return str(self._table("task").get("name", ""))

    @property
    def seed(self) -> int | None:
        """Return the seed, or None if the config does not say it."""
        seed = self.config.get("seed")
        return seed if type(seed) is int else None

    @property
    def steps(self) -> int | None:
        """Return the number of planned steps, or None if the config does not say it."""
        steps = self.config.get("steps")
        return steps if type(steps) is int and 1 <= steps < 2**63 else None

    @property
    def steps_left(self) -> int | None:
        """Return the number of steps until the run is finished, or None if the number of planned steps is unknown.

        A budget of completions or tokens can end the run before its planned steps. The steps until a budget is used up
        are computed from the mean use of a step so far, and the smallest number is returned.
        """
        if self.steps is None:
            return None
        left = self.steps - len(self.rows)
        for key in ("completions", "tokens"):
            budget, used = self.config.get(f"budget_{key}"), math.fsum(self.series(key)[1])
            if type(budget) is int and 1 <= budget < 2**63 and used > 0:
                left = min(left, math.ceil((budget - used) * len(self.rows) / used))
        return max(0, left)

    @property
    def finished(self) -> bool:
        """Return whether all planned steps are done or the budget is used up."""
        return self.steps_left == 0

    @property
    def stopped_early(self) -> bool:
        """Return whether the run finished before its planned steps, because a budget was used up."""
        return self.finished and self.steps is not None and len(self.rows) < self.steps

    def _table(self, name: str) -> Mapping[str, Any]:
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps and the values of a key, for the rows in which the value is a finite number."""
        pairs = [(row["step"], float(row[key])) for row in self.rows if is_number(row.get(key))]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def last_third(self, key: str) -> float:
        """Return the mean over the last third of the rows, or NaN if none of these rows has a number for the key."""
        values = [row[key] for row in self.rows[2 * len(self.rows) // 3 :] if is_number(row.get(key))]
        return math.fsum(values) / len(values) if values else math.nan

    def evaluation(self) -> tuple[int, Mapping[str, Any]] | None:
        """Return the step and the scores of the last evaluation, or None."""
        found = [(row["step"], row["evaluation"]) for row in self.rows if row.get("evaluation")]
        return found[-1] if found else None

    def repeats(self) -> str:
        """Return a text that is equal for all runs of one experiment. They differ only in the settings in `REPEATS`."""
        if not self.config:
            return self.label
        return json.dumps({k: v for k, v in self.config.items() if k not in REPEATS}, sort_keys=True, default=str)

    def family(self) -> str:
        """Return a text that is equal for runs that differ only in the settings in `REPEATS` and in a constant target.

        Runs whose targets are not constant must have the same target.
        """
        if not STEADY.fullmatch(self.target):
            return self.repeats()
        return replace(self, config={**self.config, "control": _without_target(self._table("control"))}).repeats()


def _without_target(control: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the control without the target. A control of two parts loses the target of both parts."""
    kept = {name: value for name, value in control.items() if name != "target"}
    return {name: _without_target(value) if isinstance(value, Mapping) else value for name, value in kept.items()}


@dataclass(frozen=True)
class Curve:
    """`Curve` is pass@k against k."""

    about: str
    """The origin of the curve, for a caption."""
    ks: Sequence[int]
    """The values of k."""
    values: Sequence[float]
    """pass@k at each k."""
    low: Sequence[float] = ()
    """The lower bounds of the intervals. The sequence is empty if there are no intervals."""
    high: Sequence[float] = ()
    """The upper bounds of the intervals. The sequence is empty if there are no intervals."""


def read_run(folder: Path, label: str, samples: bool = True) -> RunRecord:
    """Read a run folder. An incomplete last line of a file is ignored.

    Args:
        folder: The run folder.
        label: The name of the run in tables.
        samples: Whether to read the samples too.

    Raises:
        InvalidValue: The path is not a run folder, or a file in it has unexpected content.
    """
    if not is_run(folder):
        raise InvalidValue("RUN", str(folder), f"a run folder ({_instead(folder)})")
    settings = read_toml(folder / CONFIG) if (folder / CONFIG).exists() else {}
    return RunRecord(readable(label), settings, read_metrics(folder), read_rows(folder / SAMPLES) if samples else ())


def read_runs(folders: Sequence[Path], samples: bool = True) -> list[RunRecord]:
    """Read run folders in the order given.

    The label of a run is the name of its folder, or a longer part of the path if two folders have the same name.
    """
    require(len(folders) > 0, "RUN", "nothing", "one or more run folders")
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [path.name for path in paths]
    short = len(set(names)) == len(names)
    labels = names if short else [str(Path(*path.parts[-2:])) for path in paths]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    return [read_run(path, label, samples) for path, label in zip(paths, labels, strict=True)]


def run_folders(given: Sequence[Path]) -> list[Path]:
    """Return the run folders among several paths, so that a shell pattern may also match other files.

    A line on standard error says how many paths were left out. A path that does not exist is kept, so that it causes an
    error later. If no path is a run folder, all paths are returned.
    """
    kept = [path for path in given if is_run(path) or not path.exists()]
    if len(kept) == len(given) or not any(map(is_run, kept)):
        return list(given)
    names = [repr(path.name) for path in given if path not in kept]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    print(f"aepo: left out, no run folders: {len(names)} ({', '.join(names[:NAMED])}{more})", file=sys.stderr)
    return kept


def readable(name: str) -> str:
    """Return a file name as text that can be written. Each byte that is not UTF-8 becomes "?"."""
    return name.encode("utf-8", "replace").decode()


def _instead(folder: Path) -> str:
    """Return what is there in place of a run folder."""
    if not folder.exists():
        return "there is nothing at this path"
    if not folder.is_dir():
        return "it is a file"
    within = sorted(path.name for path in folder.iterdir() if is_run(path))
    if within:
        more = f" and {len(within) - NAMED} more" if len(within) > NAMED else ""
        return f"it holds runs: {', '.join(within[:NAMED])}{more}"
    return f"it holds neither {CONFIG} nor {METRICS}"


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder."""
    return path.is_dir() and any((path / name).exists() for name in (CONFIG, METRICS))


def run_curve(run: RunRecord) -> Curve | None:
    """Return pass@k of the last evaluation of the run, or None if there is none."""
    last = run.evaluation()
    if last is None:
        return None
    step, scores = last
    ks, values = _by_k({name: value for name, value in scores.items() if is_number(value)})
    about = f"after {step} steps, {scores.get('samples', '?')} samples of each of {scores.get('problems', '?')}"
    return Curve(f"{about} problems", ks, values) if ks else None


def names_of_data(runs: Sequence[RunRecord]) -> list[str]:
    """Return the names under which `aepo evaluate` stores the data of the runs: the task's, and those of its files."""
    names: list[str] = []
    for run in runs:
        task = run.config.get("task")
        if isinstance(task, Mapping) and run.task:
            files = [task.get("eval") or task.get("train")] if run.task == "data" else []
            names += [run.task, *(Path(file).stem for file in files if isinstance(file, str))]
    return sorted(set(names))


def first_curve(folders: Sequence[Path], runs: Sequence[RunRecord]) -> Curve | None:
    """Return pass@k of the runs' own evaluation before training, step 0 of evaluations.jsonl.

    It is None if no run has one, or if the runs differ in model, task or evaluation.
    """
    same = {json.dumps([run.config.get(key) for key in ("model", "task", "evaluation")], default=str) for run in runs}
    for folder, run in zip(folders, runs, strict=False):
        for row in read_rows(folder / EVALUATIONS, up_to=0) if len(same) == 1 else ():
            if row.get("problems") and row.get("samples"):
                where = f"before training, step 0 of {run.label}"
                return _counted(row, where)
    return None


def base_curve(given: Path, tasks: Sequence[str]) -> Curve:
    """Return pass@k of the base model on the data of the runs, at T = 1.

    Args:
        given: The output folder of `aepo evaluate` or `aepo compare`, or the file base.json of `aepo compare`.
        tasks: The names of the tasks of the runs, and of their files.

    Raises:
        InvalidValue: The file cannot be read, or it has no evaluation of these tasks.
    """
    path = given
    if given.is_dir():
        path = given / BASE_FILE if (given / BASE_FILE).exists() else given / RESULT
    try:
        found = json.loads(path.read_text("utf-8"))
        curves = [_compared(found)] if "correct" in found else _evaluated(found["results"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        wanted = f"a folder of `aepo evaluate` with {RESULT} in it, or {BASE_FILE} of an `aepo compare`"
        raise InvalidValue("--base", str(given), f"{wanted} ({type(error).__name__}: {error})") from None
    mine = [curve for task, curve in curves if task in tasks]
    if not mine:
        wanted = f"an evaluation of the runs' task ({', '.join(tasks) or 'unknown'}) at T = 1 and top-p 1"
        named = ", ".join(task for task, _ in curves) or "nothing"
        raise InvalidValue("--base", str(given), f"{wanted}; at these it holds {named}")
    return mine[0]


def base_beside(folders: Sequence[Path], runs: Sequence[RunRecord]) -> Path | None:
    """Return the evaluation of the base model that lies beside the runs, or None.

    It is the base.json of their comparison, or else the folder of an `aepo evaluate` on the data of the runs. The model
    and the data must be those of all these runs.
    """
    parents = {folder.resolve().parent for folder in folders}
    parent = parents.pop()
    if parents:
        return None
    file = parent / BASE_FILE
    with suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        made_with = json.loads(file.read_text("utf-8"))["settings"]
        if all(run.config.get(name) == made_with[name] for run in runs for name in ("model", "task")):
            return file
    return next((path.parent for path in sorted(parent.glob(f"*/{RESULT}")) if _is_of(path, runs)), None)


def _is_of(file: Path, runs: Sequence[RunRecord]) -> bool:
    """Return whether an evaluation is of the runs' base model on their data, with a curve at T = 1."""
    names = names_of_data(runs)
    same = len({json.dumps([run.config.get("model"), run.config.get("task")], default=str) for run in runs}) == 1
    try:
        found = json.loads(file.read_text("utf-8"))
        folder = str(found["settings"]["folder"])
        own = str(runs[0].config.get("model"))
        given = own == found["settings"]["model"] or (
            own != "builtin" and Path(folder).resolve() == Path(own).resolve()
        )
        return same and given and any(task in names for task, _ in _evaluated(found["results"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _compared(kept: Mapping[str, Any]) -> tuple[str, Curve]:
    """Return the name of the task and the curve from a base.json, with intervals over problems."""
    return str(kept["settings"]["task"]["name"]), _counted(kept, f"from {BASE_FILE} of `aepo compare`")


def _counted(kept: Mapping[str, Any], where: str) -> Curve:
    """Return the curve of an evaluation that holds the right completions of each problem."""
    base = Result(tuple(kept["problems"]), tuple(kept["correct"]), kept["samples"], ())
    ks = [2**i for i in range(base.samples.bit_length())]
    values = np.stack([base.pass_at(k) for k in ks], axis=1)
    require(len(values) > 0, BASE_FILE, "no problems", "an evaluation")
    about = f"{base.samples} samples of each of {len(values)} problems, {where}"
    found = column_intervals(values, seed=0)
    bounds = ([i.low for i in found], [i.high for i in found]) if len(values) > 1 else ((), ())
    return Curve(about, ks, values.mean(axis=0).tolist(), *bounds)


def _evaluated(results: Sequence[Mapping[str, Any]]) -> list[tuple[str, Curve]]:
    """Return the name and the curve of each benchmark in an evaluation.json that was sampled at T = 1 and top-p 1."""
    found = [part for part in results if part["temperature"] == 1 and part["top_p"] == 1]
    return [(str(part["benchmark"]), _evaluated_curve(part)) for part in found]


def _evaluated_curve(part: Mapping[str, Any]) -> Curve:
    scores = part["scores"]
    ks, values = _by_k({name: score["mean"] for name, score in scores.items()})
    bounds = {side: _by_k({name: score[side] for name, score in scores.items()})[1] for side in ("low", "high")}
    about = f"{part['n']} samples of each of {part['problems']} problems"
    if any(bound is None for bound in bounds["low"]):
        bounds = {"low": [], "high": []}
    return Curve(about, ks, values, bounds["low"], bounds["high"])


def _by_k(scores: Mapping[str, Any]) -> tuple[list[int], list[Any]]:
    ks = {int(k): value for name, value in scores.items() if (k := name.removeprefix("pass@")).isdigit()}
    return sorted(ks), [ks[k] for k in sorted(ks)]
