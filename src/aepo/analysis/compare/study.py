"""`read_study` reads the file of a comparison (docs/compare.md). All runs are checked before the first one starts."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from aepo.analysis.compare.results import BASE
from aepo.config import Config, make_config, read_toml, to_dict, to_toml
from aepo.engines.preflight import targets
from aepo.errors import require
from aepo.training.folder import write_atomically
from aepo.training.processes import Job

UNITS = ("completions", "tokens")
KEYS = ("cost", "budget", "methods", "targets", "seeds", "baseline", "base", "evaluation")
# The settings that must be equal in all runs or that the comparison sets.
SHARED = ("method", "model", "task", "seed", "steps", "evaluation", "budget_completions", "budget_tokens", "threads")
# An interval between evaluations that no run reaches. So a run is evaluated once, at its end.
NEVER = 1_000_000


@dataclass(frozen=True)
class Arm:
    """`Arm` is one method at one target, or without a target."""

    label: str
    """The name of the arm in tables."""
    method: str
    """The name of a method, or two names joined by +."""
    target: str | None
    """The entropy target as it is written in the file. It is None if the arm has no target."""
    settings: Mapping[str, Any]
    """The settings of this arm alone, by their dotted names."""

    @property
    def slug(self) -> str:
        """Return the label in a form that can be the name of a folder."""
        return re.sub(r"[^\w.+-]+", "-", self.label).strip("-").lower()


@dataclass(frozen=True)
class Planned:
    """`Planned` is one run of a comparison."""

    arm: Arm
    """The arm that the run belongs to."""
    config: Config
    """All settings of the run."""
    out: Path
    """The run folder."""

    def job(self, unit: str, budget: int) -> Job:
        """Return the job that starts or continues this run. The run starts from a file beside its folder."""
        return Job(self.out, (str(self.recipe),), self.config.steps, (unit, budget))

    @property
    def recipe(self) -> Path:
        """Return the path of the file that the run starts from."""
        return self.out.with_suffix(self.out.suffix + ".toml")


@dataclass(frozen=True)
class Study:
    """`Study` is a whole comparison."""

    unit: Literal["completions", "tokens"]
    """What the budget counts: completions or tokens."""
    budget: int
    """The budget of each run, in `unit`."""
    baseline: str
    """The label of the arm that the other arms are compared with."""
    arms: Sequence[Arm]
    """All arms."""
    seeds: Sequence[int]
    """The seeds of every arm."""
    runs: Sequence[Planned]
    """All runs."""

    def of(self, arm: Arm) -> list[Planned]:
        """Return the arm's runs in the order of the seeds."""
        return [run for run in self.runs if run.arm == arm]

    def jobs(self) -> list[Job]:
        """Return the jobs seed by seed, so that a stopped comparison has as many complete seeds as possible."""
        return [run.job(self.unit, self.budget) for run in self.runs]

    def prepare(self) -> None:
        """Write each run's settings.

        Raises:
            InvalidValue: A run was started with other settings.
        """
        for run in self.runs:
            _check_same(run)
        for run in self.runs:
            run.out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(run.recipe, to_toml(run.config))


def read_study(file: Path, out: Path) -> Study:
    """Return every run that the file asks for, in folders under `out`.

    Raises:
        InvalidValue: The file asks for something that is not possible. The message names the first such entry.
    """
    data = read_toml(file)
    for key, value in data.items():
        require(key in KEYS, key, value, f"one of {', '.join(KEYS)}")
    for key in ("base", "evaluation"):
        require(isinstance(data.get(key, {}), Mapping), key, data.get(key), f"a table of settings: [{key}]")
    unit, budget = _cost(data)
    seeds = data.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(seed) is int for seed in seeds)
    require(whole and len(set(seeds)) == len(seeds) > 0, "seeds", seeds, "a list of different whole numbers")
    arms = list(_arms(data))
    labels = [arm.label for arm in arms]
    slugs = [arm.slug for arm in arms]
    for label, slug in zip(labels, slugs, strict=True):
        require(slugs.count(slug) == 1, "methods", label, "labels that differ: there are two of this one")
    require(BASE not in labels, "methods.label", BASE, "another label: this is the row of the model before training")
    chosen = data.get("baseline", labels[0])
    known = [*labels, BASE]
    require(chosen in known, "baseline", chosen, f"one of the runs' labels: {', '.join(known)}")
    runs = [
        Planned(arm, _config(data, arm, seed, unit, budget), out / f"{arm.slug}-seed{seed}")
        for seed in seeds
        for arm in arms
    ]
    return Study(unit, budget, chosen, arms, seeds, runs)


def _cost(data: Mapping[str, Any]) -> tuple[Literal["completions", "tokens"], int]:
    unit, budget = data.get("cost"), data.get("budget")
    require(unit in UNITS, "cost", unit, "completions or tokens: what every run may sample the same number of")
    require(type(budget) is int and budget >= 1, "budget", budget, f"how many {unit} each run samples, at least 1")
    assert budget is not None
    return ("completions" if unit == "completions" else "tokens"), budget


def _arms(data: Mapping[str, Any]) -> Iterator[Arm]:
    """Yield one arm for each target that is given for a method. A method without a target has one arm."""
    methods, wanted = data.get("methods"), data.get("targets", [])
    require(isinstance(methods, list) and len(methods) > 0, "methods", methods, "a list of methods")
    _check_targets("targets", wanted)
    assert isinstance(methods, list)
    for entry in methods:
        given: Any = {"method": entry} if isinstance(entry, str) else entry
        known = isinstance(given, Mapping) and isinstance(given.get("method"), str)
        wish = "a name, or a table with method and, as it likes, label, targets and set"
        require(known and set(given) <= {"method", "label", "targets", "set"}, "methods", entry, wish)
        label = given.get("label", given["method"])
        named = isinstance(label, str) and re.search(r"\w", label) is not None
        require(named, "methods.label", label, "a text with a letter or digit")
        changed = given.get("set", {})
        require(
            isinstance(changed, Mapping), "methods.set", changed, "a table of settings, such as {control.law = ...}"
        )
        method, settings = given["method"], _flat(changed)
        for name in settings:
            wish = "left out: it is the same in all runs, from [base] or set by the comparison"
            require(name.split(".")[0] not in SHARED, f"methods.set.{name}", settings[name], wish)
        aims = dict(targets(make_config(method=method).control))
        if not aims:
            own = given.get("targets")
            require(own is None, "methods.targets", own, f"left out: {method} has no target")
        _check_targets("methods.targets", given.get("targets", wanted))
        own_targets = [str(target) for target in given.get("targets", wanted)] if aims else []
        for target in own_targets:
            yield Arm(f"{label} {target}", method, target, {**settings, **dict.fromkeys(aims, target)})
        if not own_targets:
            yield Arm(label, method, None, settings)


def _check_targets(field: str, given: Any) -> None:
    known = isinstance(given, list) and all(isinstance(target, str | int | float) for target in given)
    require(known, field, given, 'a list of targets such as [0.5, "0.6x"]')


def _config(data: Mapping[str, Any], arm: Arm, seed: int, unit: str, budget: int) -> Config:
    """Return all settings of a run: [base], then the arm's own settings, then those that are equal in all runs."""
    base = copy.deepcopy(dict(data.get("base", {})))
    for name in base:
        fixed = name in (*SHARED, "control") and name not in ("model", "task")
        require(not fixed, f"base.{name}", base[name], "left out: the comparison sets it")
    evaluation = {"every": NEVER, "first": False, **data.get("evaluation", {})}
    require(evaluation["every"] != 0, "evaluation.every", 0, "at least 1: the end of each run is evaluated")
    config = make_config(
        method=arm.method,
        overrides={**base, "threads": 1, "evaluation": evaluation, **arm.settings, "seed": seed},
    )
    # Every step draws at least prompts * group_size completions, and no completion is empty. So the budget always ends
    # the run, and the number of steps never does.
    steps = -(-budget // (config.sampling.prompts * config.sampling.group_size))
    if unit == "tokens":
        return replace(config, steps=steps, budget_tokens=budget)
    return replace(config, steps=steps, budget_completions=budget)


def _check_same(run: Planned) -> None:
    file = run.out / "config.toml"
    if not file.exists():
        return
    before, now = _flat(to_dict(make_config(file))), _flat(to_dict(run.config))
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        wanted = f"as the run {run.out} has begun with it ({old!r}), or another --out"
        require(new == "auto" or old == new, name, new, wanted)


def _flat(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
