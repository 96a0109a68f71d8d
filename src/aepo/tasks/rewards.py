"""Verifiers for rows of data: a grader, or any importable function in TRL's, verl's or EasyR1's signature."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from aepo.errors import InvalidValue, require
from aepo.grading.base import Grader
from aepo.grading.exact import ExactGrader
from aepo.grading.math import MathGrader
from aepo.grading.pool import GradingPool


@dataclass(frozen=True)
class Answered:
    """A completion to be judged: its text, the prompt's, the known answer, and the row's columns."""

    prompt: str
    completion: str
    answer: str
    columns: Mapping[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A reward, NaN where there is none. failed: the judge hung or crashed; it is counted and logged."""

    reward: float
    failed: bool = False
    reason: str = ""


class Verifier(ABC):
    """Judges many completions at once."""

    name: ClassVar[str]

    @abstractmethod
    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """One verdict each, in order; never raises for what a completion says."""

    def check(self) -> None:  # noqa: B027
        """Raise `InvalidValue` for what cannot work, before any work starts."""


@dataclass(frozen=True)
class Graded(Verifier):
    """1.0 if the grader says right, else 0.0. A grade that hangs or crashes is 0.0 and counts as failed.

    seconds: wall-clock limit of one grade. processes: workers that can be killed; none for one per core.
    """

    name: ClassVar[str] = "graded"
    grader: Grader = MathGrader()
    seconds: float = 5.0
    processes: int | None = None

    def __post_init__(self) -> None:
        require(self.seconds > 0, "verifier.seconds", self.seconds, "a positive number of seconds")
        ok = self.processes is None or self.processes >= 1
        require(ok, "verifier.processes", self.processes, "at least 1, or none for one per core")

    def check(self) -> None:
        """What the grader needs is installed."""
        if not isinstance(self.grader, ExactGrader) and importlib.util.find_spec("math_verify") is None:
            raise InvalidValue(
                "verifier.grader", self.grader.name, "exact, or with `pip install 'aepo[math]'` math or qwen"
            )

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Grade in the pool."""
        grades = self._pool.grade([(item.completion, item.answer) for item in items])
        return [Verdict(float(grade.correct), grade.failed, grade.reason) for grade in grades]

    @cached_property
    def _pool(self) -> GradingPool:
        return GradingPool(self.grader, self.processes or os.cpu_count() or 1, self.seconds)


@dataclass(frozen=True)
class Function(Verifier):
    """`path` is `module:function` or `file.py:function`, called in one of three signatures.

    trl:    f(prompts, completions, **columns) -> list of numbers        (columns as lists, `answer` among them)
    verl:   f(data_source, solution_str, ground_truth, extra_info) -> number, or a table with `score`
    easyr1: f(reward_inputs) -> list of tables with `overall`, the inputs a list of {"response", "response_length",
            "ground_truth"}; or f(reward_input), one table in and one out (the parameter's plural s tells)

    `auto` tells them apart by the names of the parameters.
    """

    name: ClassVar[str] = "function"
    path: str = ""
    signature: Literal["auto", "trl", "verl", "easyr1"] = "auto"

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Call the function; what it raises is a failed verdict without reward for every completion of that call."""
        call = {"trl": _call_trl, "verl": _call_verl, "easyr1": _call_easyr1}[self._signature]
        return call(self._function, items)

    def check(self) -> None:
        """Import the function and find its signature."""
        _ = self._signature

    @cached_property
    def _function(self) -> Callable[..., Any]:
        place, colon, name = self.path.rpartition(":")
        if not colon:
            raise InvalidValue("verifier.path", self.path, "written as module:function or file.py:function")
        try:
            module = _load_file(place) if place.endswith(".py") else importlib.import_module(place)
            function = getattr(module, name)
        except Exception as error:
            raise InvalidValue("verifier.path", self.path, f"importable ({type(error).__name__}: {error})") from None
        if not callable(function):
            raise InvalidValue("verifier.path", self.path, "a function")
        found: Callable[..., Any] = function
        return found

    @cached_property
    def _signature(self) -> str:
        names = list(inspect.signature(self._function).parameters)
        if self.signature != "auto":
            return self.signature
        if "solution_str" in names:
            return "verl"
        if "completions" in names:
            return "trl"
        if len(names) == 1 or names[0].startswith("reward_input"):
            return "easyr1"
        wanted = "trl, verl or easyr1: its parameters do not say which"
        raise InvalidValue("verifier.signature", f"auto for {self.path}({', '.join(names)})", wanted)


def _load_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("aepo_user_reward", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _call_trl(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    keys = dict.fromkeys(
        key for item in items for key in item.columns if key not in ("prompts", "completions", "prompt")
    )
    columns = {key: [item.columns.get(key) for item in items] for key in keys}
    columns["answer"] = [item.answer for item in items]
    try:
        values = function([item.prompt for item in items], [item.completion for item in items], **columns)
        return [_verdict(value) for value in _as_many(values, len(items))]
    except Exception as error:
        return [_failed(error)] * len(items)


def _call_verl(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    verdicts = []
    for item in items:
        columns = item.columns
        extra = columns.get("extra_info") or dict(columns)
        try:
            verdicts.append(
                _verdict(function(columns.get("data_source", ""), item.completion, item.answer, extra), "score")
            )
        except Exception as error:
            verdicts.append(_failed(error))
    return verdicts


def _call_easyr1(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    tables = [
        {"response": item.completion, "response_length": len(item.completion), "ground_truth": item.answer}
        for item in items
    ]
    single = not next(iter(inspect.signature(function).parameters)).endswith("s")
    try:
        values = [function(table) for table in tables] if single else function(tables)
        return [_verdict(value, "overall") for value in _as_many(values, len(items))]
    except Exception as error:
        return [_failed(error)] * len(items)


def _as_many(values: Any, count: int) -> Sequence[Any]:
    if not isinstance(values, Sequence) or len(values) != count:
        raise ValueError(f"it returned {type(values).__name__} where a list of {count} was expected")
    return values


def _verdict(value: Any, key: str = "") -> Verdict:
    number = float(value[key] if isinstance(value, Mapping) else value)
    return Verdict(number, failed=not math.isfinite(number))


def _failed(error: Exception) -> Verdict:
    return Verdict(math.nan, failed=True, reason=f"{type(error).__name__}: {error}")


VERIFIERS: dict[str, type[Verifier]] = {cls.name: cls for cls in (Graded, Function)}
