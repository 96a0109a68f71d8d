"""Run folders and evaluation folders, read into plain frozen data. A key that a run lacks is missing, not an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.checks import InvalidValue, require
from aepo.config import read_toml
from aepo.evaluation.samples import RESULT
from aepo.log import METRICS, SAMPLES, read_rows

# Settings in which runs of one method and target may differ: they are repeats of each other still.
REPEATS = ("seed", "threads", "device", "checkpoint", "tracker")


@dataclass(frozen=True)
class Run:
    """One run folder. rows, samples: its lines as they stand."""

    label: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]

    @property
    def method(self) -> str:
        """As in the config; ? without one."""
        return str(self.config.get("method", "?"))

    @property
    def target(self) -> str:
        """As it was written, such as 0.6x; empty for a method without one."""
        control = self._table("control")
        parts = [control, *(part for part in control.values() if isinstance(part, Mapping))]
        return next((str(part["target"]) for part in parts if "target" in part), "")

    @property
    def task(self) -> str:
        """Its name; empty without a config."""
        return str(self._table("task").get("name", ""))

    @property
    def seed(self) -> int | None:
        """None without a config."""
        return self.config.get("seed")

    @property
    def steps(self) -> int | None:
        """Planned ones, None without a config."""
        steps = self.config.get("steps")
        return steps if isinstance(steps, int) else None

    @property
    def steps_left(self) -> int | None:
        """To the last planned step, or to the end of a budget at the pace so far; None without a config."""
        if self.steps is None:
            return None
        left = self.steps - len(self.rows)
        for key in ("completions", "tokens"):
            budget, used = self.config.get(f"budget_{key}"), sum(row.get(key, 0) for row in self.rows)
            if isinstance(budget, int) and used:
                left = min(left, math.ceil((budget - used) * len(self.rows) / used))
        return max(0, left)

    @property
    def finished(self) -> bool:
        """All planned steps are there, or the budget is used up."""
        return self.steps_left == 0

    def _table(self, name: str) -> Mapping[str, Any]:
        found = self.config.get(name)
        return found if isinstance(found, Mapping) else {}

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Steps and values of a key, where it is a finite number."""
        pairs = [(row["step"], float(row[key])) for row in self.rows if is_number(row.get(key))]
        return [step for step, _ in pairs], [value for _, value in pairs]

    def last_third(self, key: str) -> float:
        """Mean over the last third of the rows, NaN where none has the key."""
        values = [row[key] for row in self.rows[2 * len(self.rows) // 3 :] if is_number(row.get(key))]
        return math.fsum(values) / len(values) if values else math.nan

    def evaluation(self) -> tuple[int, Mapping[str, Any]] | None:
        """The step and the scores of the last evaluation."""
        found = [(row["step"], row["evaluation"]) for row in self.rows if row.get("evaluation")]
        return found[-1] if found else None

    def repeats(self) -> str:
        """Equal for runs that differ in nothing but what does not make another experiment."""
        if not self.config:
            return self.label
        return json.dumps({k: v for k, v in self.config.items() if k not in REPEATS}, sort_keys=True, default=str)


@dataclass(frozen=True)
class Curve:
    """pass@k against k; the interval is empty where there is none. about: what made it, for a caption."""

    about: str
    ks: Sequence[int]
    values: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


def is_number(value: object) -> bool:
    """A finite int or float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def read_run(folder: Path, label: str, samples: bool = True) -> Run:
    """`InvalidValue` for what is no run folder, or a file in it that holds something else. A half-written last line is
    left out, and so are all samples where they are not asked for.
    """
    config = folder / "config.toml"
    if not config.exists() and not (folder / METRICS).exists():
        raise InvalidValue("RUN", str(folder), f"a run folder (it holds neither config.toml nor {METRICS})")
    settings = read_toml(config) if config.exists() else {}
    return Run(label, settings, _rows(folder / METRICS), _rows(folder / SAMPLES) if samples else ())


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """In the order given, each labelled by its folder's name, or by more of the path where names repeat."""
    require(len(folders) > 0, "RUN", "nothing", "one or more run folders")
    paths = list(dict.fromkeys(folder.resolve() for folder in folders))
    names = [path.name for path in paths]
    short = len(set(names)) == len(names)
    labels = names if short else [str(Path(*path.parts[-2:])) for path in paths]
    if len(set(labels)) < len(labels):
        labels = [str(path) for path in paths]
    return [read_run(path, label) for path, label in zip(paths, labels, strict=True)]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        rows = read_rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("RUN", str(path), f"a file that can be read ({error})") from None
    for row in rows:
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InvalidValue("RUN", str(path), "rows as `aepo train` writes them, each with its step")
    return rows


def run_curve(run: Run) -> Curve | None:
    """pass@k of the run's last evaluation."""
    last = run.evaluation()
    if last is None:
        return None
    step, scores = last
    ks, values = _by_k({name: value for name, value in scores.items() if is_number(value)})
    about = f"after {step + 1} steps, {scores.get('samples', '?')} samples of each of {scores.get('problems', '?')}"
    return Curve(f"{about} problems", ks, values) if ks else None


def base_curve(folder: Path, tasks: Sequence[str]) -> Curve:
    """pass@k of the base model, from the folder of an `aepo evaluate` on the runs' own task at T = 1."""
    path = folder / RESULT if folder.is_dir() else folder
    try:
        results = json.loads(path.read_text())["results"]
        found = [part for part in results if part["temperature"] == 1 and part["top_p"] == 1]
        mine = [part for part in found if part["benchmark"] in tasks]
        named = ", ".join(str(part["benchmark"]) for part in found) or "nothing"
        curves = [_evaluated(part) for part in mine]
    except (OSError, ValueError, KeyError, TypeError) as error:
        wanted = f"a folder of `aepo evaluate` with {RESULT} in it ({type(error).__name__}: {error})"
        raise InvalidValue("--base", str(folder), wanted) from None
    if not curves:
        wanted = f"an evaluation of the runs' task ({', '.join(tasks) or 'unknown'}) at T = 1 and top-p 1"
        raise InvalidValue("--base", str(folder), f"{wanted}; at these it holds {named}")
    return curves[0]


def _evaluated(part: Mapping[str, Any]) -> Curve:
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
