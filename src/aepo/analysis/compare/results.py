"""This module reads what finished runs measured, and computes how far each arm is from the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aepo.analysis.tracking import tracking
from aepo.errors import InvalidValue, require
from aepo.evaluation.statistics import Array, Interval, crossed_interval
from aepo.training.evaluate import pass_at_k
from aepo.training.folder import EVALUATIONS, METRICS, read_metrics, read_rows

# The label of the arm without training, which is the same for every seed.
BASE = "base model"
# The file with the evaluation of the base model and its settings, in the folder of the comparison.
BASE_FILE = "base.json"
# The costs of a step in a row of metrics.jsonl.
COSTS = ("completions", "tokens", "seconds_cpu")
# The fields that a row must have.
NEEDED = (*COSTS, "extra_completions", "entropy")


@dataclass(frozen=True)
class Result:
    """`Result` holds what one finished run measured."""

    problems: tuple[str, ...]
    """The ids of the problems of the last evaluation."""
    correct: tuple[int, ...]
    """The number of correct completions of each problem, out of `samples`."""
    samples: int
    """The number of completions of each problem."""
    rows: Sequence[Mapping[str, Any]]
    """The rows of metrics.jsonl. It is empty for the base model."""

    def pass_at(self, k: int) -> Array:
        """Return the unbiased pass@k of each problem, [problems]."""
        return np.array([pass_at_k(self.samples, c, k) for c in self.correct])

    def target(self) -> float | None:
        """Return the entropy target in nats per token. It is None if the target differs between steps, or is absent."""
        found = {row.get("target_entropy") for row in self.rows}
        return found.pop() if len(found) == 1 else None

    def tracking_error(self, target: float | None) -> float:
        """Return the RMSE of the entropy over the last third of the run's steps, in nats.

        The error is measured from the run's own target. A run without a target is compared with `target`. The result is
        NaN if both are absent.
        """
        return tracking(self.rows, target).last_third_rmse

    def numbers(self) -> dict[str, float]:
        """Return the entropy, the number of steps and the costs of the whole run, by name."""
        costs = {name: float(sum(row[name] for row in self.rows)) for name in COSTS}
        return {"entropy": tracking(self.rows).last_third_entropy, "steps": float(len(self.rows)), **costs}


@dataclass(frozen=True)
class Measure:
    """`Measure` is one number of an arm, with its difference to the baseline."""

    value: Interval
    """The mean of the arm over seeds (and problems), with its interval."""
    difference: Interval | None
    """The paired difference to the baseline. It is None for the baseline, and if the baseline lacks this number."""


@dataclass(frozen=True)
class Comparison:
    """`Comparison` holds the numbers of all arms.

    The names of the numbers are pass@1, pass@k, entropy, tracking_error, of_floor, steps, completions, tokens and
    seconds_cpu.
    """

    baseline: str
    """The label of the arm that the other arms are compared with."""
    k: int
    """The k of pass@k. It is the number of samples of each problem."""
    arms: Mapping[str, Mapping[str, Measure]]
    """The numbers, by the label of the arm and then by the name of the number."""


def measured(run: Path) -> Result:
    """Read what a finished run measured.

    Raises:
        InvalidValue: The run has no last evaluation, or a row lacks a field that is needed.
    """
    found = read_rows(run / EVALUATIONS)
    if not found:
        raise InvalidValue("run", str(run), f"a finished run with an evaluation in {EVALUATIONS}")
    last, rows = found[-1], read_metrics(run)
    _complete(run / EVALUATIONS, [last], ("problems", "correct", "samples"))
    _complete(run / METRICS, rows, NEEDED)
    return Result(tuple(last["problems"]), tuple(last["correct"]), last["samples"], rows)


def _complete(file: Path, rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> None:
    for row in rows:
        absent = ", ".join(key for key in keys if row.get(key) is None)
        require(not absent, str(file), f"step {row['step']} without {absent}", "rows of this version of aepo")


def compared(baseline: str, results: Mapping[str, Sequence[Result]]) -> Comparison:
    """Compare each arm with the baseline.

    Args:
        baseline: The label of the baseline.
        results: The results of each arm, by its label. The runs of every arm are in the same order of seeds.

    Raises:
        InvalidValue: The runs were evaluated on different problems, or with different numbers of samples.
    """
    everything = [result for runs in results.values() for result in runs]
    first = everything[0]
    for result in everything:
        if (result.problems, result.samples) != (first.problems, first.samples):
            got = f"{len(result.problems)} problems x {result.samples} samples"
            raise InvalidValue("evaluation", got, "the same problems and samples in every run: differences are paired")
    arms = {}
    for label, runs in results.items():
        others = None if label == baseline else results[baseline]
        arms[label] = _measures(runs, others, first.samples)
    return Comparison(baseline, first.samples, arms)


def _measures(runs: Sequence[Result], others: Sequence[Result] | None, k: int) -> dict[str, Measure]:
    ks = {"pass@1": 1, f"pass@{k}": k}
    found = {name: _measure(*(_passes(some, at) for some in (runs, others))) for name, at in ks.items()}
    numbers = [run.numbers() for run in runs if run.rows]
    trained = others is not None and all(other.rows for other in others)
    base = [other.numbers() for other in others] if others is not None and trained else None
    for name in numbers[0] if numbers else ():
        mine, theirs = (None if some is None else _column([n[name] for n in some]) for some in (numbers, base))
        found[name] = _measure(mine, theirs)
    floors = _column([tracking(run.rows).of_floor for run in runs if run.rows])
    if numbers and np.isfinite(floors).all():
        found["of_floor"] = Measure(crossed_interval(floors), None)
    own = _column([run.tracking_error(None) for run in runs if run.rows])
    if numbers and np.isfinite(own).all():
        against = None
        if others is not None and trained:
            pairs = zip(runs, others, strict=True)
            against = _column([other.tracking_error(run.target()) for run, other in pairs])
        found["tracking_error"] = _measure(own, against)
    return found


def _passes(runs: Sequence[Result] | None, k: int) -> Array | None:
    return None if runs is None else np.stack([run.pass_at(k) for run in runs])


def _column(values: Sequence[float]) -> Array:
    return np.array(values, dtype=np.float64)[:, None]


def _measure(mine: Array | None, theirs: Array | None) -> Measure:
    assert mine is not None
    paired = theirs is not None and bool(np.isfinite(theirs).all())
    return Measure(crossed_interval(mine), crossed_interval(mine - theirs) if paired and theirs is not None else None)
