"""`Function` calls users' reward functions as TRL, verl and EasyR1 call them: by keyword, with their types and units.

The calls follow TRL 1.16 (`GRPOTrainer._calculate_rewards`), verl 0.9.1 (`reward_manager/naive.py` and `batch.py`) and
EasyR1 (`verl/workers/reward/function.py`, 46c6c21).
"""

from __future__ import annotations

import asyncio
import inspect
import math
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from aepo.errors import InvalidValue, require
from aepo.plugins import load_object
from aepo.tasks.code import Code
from aepo.tasks.isolated import Workers
from aepo.tasks.limits import LimitReachedError, limited
from aepo.tasks.rewards import Answered, Graded, Verdict, Verifier

# A parameter of one of these names tells whose signature a function has.
_TELLING = {
    "verl-batch": ("solution_strs",),
    "verl": ("solution_str",),
    "trl": ("completions", "completion_ids", "prompts"),
    "easyr1": ("reward_inputs", "reward_input"),
}
# Keys of a result table that say whether the completion is right, beside the reward: verl, EasyR1, and plain words.
_OWN_VERDICT = ("acc", "accuracy", "correct", "right")


@dataclass(frozen=True)
class Function(Verifier):
    """`Function` scores completions with a Python function that was written for TRL, verl or EasyR1.

    Arguments go by keyword, and a function gets those that it names (all of them if it has `**kwargs`). It may be
    `async`, and it may be a callable object. As in these trainers, the texts have no special tokens.

    - `trl`: prompts, completions, completion_ids, trainer_state, log_extra, log_metric and a list for each column ->
      one number each. In rows of chat messages, prompts and completions are lists of messages, else texts.
    - `verl`: data_source, solution_str, ground_truth, extra_info -> a number or a table with `score`; one call for
      each completion.
    - `verl-batch`: data_sources, solution_strs, ground_truths, extra_infos -> a list of these.
    - `easyr1`: reward_inputs, a list of tables with `response`, `response_length` (tokens) and `ground_truth` -> a list
      of tables with `overall`; or reward_input, one such table -> one table.

    A result may be a list, an array or a tensor. A table may say with `acc`, `accuracy`, `correct` or `right` whether
    the completion is right (`task.right`). None (TRL: no score for this completion) leaves the completion out and is no
    failure. A call that raises, `SystemExit` included, is repeated; if it raises again, every completion of that call
    gets a failed verdict without a reward. A call that reaches its limit is not repeated.
    """

    name: ClassVar[str] = "function"
    path: str = ""
    """The function: `module:function` or `file.py:function`."""
    signature: Literal["auto", "trl", "verl", "verl-batch", "easyr1"] = "auto"
    """Whose signature the function has; `auto` tells by the names of its parameters."""
    seconds: float | None = 300.0
    """Limit of one call, in seconds of processor time; none for no limit. Without `processes` it holds in the main
    thread and in Python code only.
    """
    wall_seconds: float | None = None
    """Limit of one call, in seconds on the clock; none for no limit."""
    retries: int = 1
    """How often a call that raised is repeated."""
    processes: int = 0
    """Processes that run the function and can be killed; 0 runs it in the process of the training."""

    def __post_init__(self) -> None:
        for name in ("seconds", "wall_seconds"):
            limit = getattr(self, name)
            require(limit is None or limit > 0, f"verifier.{name}", limit, "a positive number of seconds, or none")
        require(self.retries >= 0, "verifier.retries", self.retries, "a number of repetitions, 0 or more")
        require(self.processes >= 0, "verifier.processes", self.processes, "a number of processes, 0 or more")

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Call the function on all completions."""
        if not items:
            return []
        if self.processes:
            calls = [[item] for item in items] if self._single else [list(items)]
            return [verdict for verdicts in self._workers.judge(calls) for verdict in verdicts]
        calls_of = {"trl": _trl, "verl": _verl, "verl-batch": _verl_batch, "easyr1": _easyr1}
        return calls_of[self._signature](_Caller(self), items)

    @property
    def special_tokens(self) -> bool:
        """Return False: these trainers decode completions without special tokens."""
        return False

    def check(self) -> None:
        """Import the function and find its signature."""
        _ = self._signature

    @property
    def function(self) -> Callable[..., Any]:
        """Return the function itself."""
        return self._function

    @cached_property
    def _workers(self) -> Workers:
        wall = self.wall_seconds
        return Workers(replace(self, processes=0), self.processes, wall if wall is not None else self.seconds)

    @property
    def _single(self) -> bool:
        """Whether the function judges one completion in a call."""
        names = list(_parameters(self._function))
        return self._signature == "verl" or (self._signature == "easyr1" and not names[0].endswith("s"))

    @cached_property
    def _function(self) -> Callable[..., Any]:
        found = load_object(self.path, "verifier.path", "function")
        if not callable(found) or isinstance(found, type):
            raise InvalidValue("verifier.path", self.path, "a function or a callable object")
        function: Callable[..., Any] = found
        return function

    @cached_property
    def _signature(self) -> str:
        names = list(_parameters(self._function))
        if self.signature != "auto":
            return self.signature
        for signature, telling in _TELLING.items():
            if any(name in names for name in telling):
                return signature
        if len(names) == 1:
            return "easyr1"
        wanted = "trl, verl, verl-batch or easyr1: its parameters do not say which"
        raise InvalidValue("verifier.signature", f"auto for {self.path}({', '.join(names)})", wanted)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


# --- one call for each signature ----------------------------------------------------------------------------


def _trl(caller: _Caller, items: Sequence[Answered]) -> list[Verdict]:
    keys = dict.fromkeys(key for item in items for key in item.columns if key not in ("prompt", "completion"))
    given: dict[str, Any] = {key: [item.columns.get(key) for item in items] for key in keys}
    given.setdefault("answer", [item.answer for item in items])
    chats = [[{"role": "assistant", "content": item.completion}] for item in items]
    given |= {
        "prompts": [_turns(item) or item.prompt for item in items],
        "completions": [chat if item.messages else item.completion for chat, item in zip(chats, items, strict=True)],
        "completion_ids": [list(item.tokens) for item in items],
        "trainer_state": _trainer_state(*items[0].place),
    }
    return caller.many(given, items)


def _verl(caller: _Caller, items: Sequence[Answered]) -> list[Verdict]:
    return [caller.one(_verl_item(item), item, "score") for item in items]


def _verl_batch(caller: _Caller, items: Sequence[Answered]) -> list[Verdict]:
    tables = [_verl_item(item) for item in items]
    given: dict[str, Any] = {f"{key}s": [table[key] for table in tables] for key in tables[0]}
    # verl keeps these two columns as arrays of objects.
    given |= {key: _objects(given[key]) for key in ("data_sources", "extra_infos")}
    return caller.many(given, items, "score")


def _objects(values: Sequence[Any]) -> Any:
    import numpy as np

    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _verl_item(item: Answered) -> dict[str, Any]:
    columns = item.columns
    model = columns.get("reward_model")
    known = model.get("ground_truth") if isinstance(model, Mapping) else None
    return {
        "data_source": columns.get("data_source", ""),
        "solution_str": item.completion,
        "ground_truth": item.answer if known is None else known,
        "extra_info": {**(columns.get("extra_info") or columns), "num_turns": None, "rollout_reward_scores": {}},
    }


def _easyr1(caller: _Caller, items: Sequence[Answered]) -> list[Verdict]:
    tables = [
        {"response": item.completion, "response_length": len(item.tokens), "ground_truth": item.answer}
        for item in items
    ]
    name = next(iter(_parameters(caller.function)))
    if not name.endswith("s"):
        return [caller.one({name: table}, item, "overall") for table, item in zip(tables, items, strict=True)]
    return caller.many({name: tables}, items, "overall")


def _trainer_state(step: int, steps: int) -> Any:
    """Return transformers' `TrainerState`, which TRL passes to reward functions: its steps are those of this run."""
    from transformers import TrainerState

    return TrainerState(global_step=step, max_steps=steps)


def _turns(item: Answered) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in item.messages]


# --- calling, and reading the result ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Caller:
    """`_Caller` calls the function within its limits, repeats a call that raised, and reads the result."""

    settings: Function

    @property
    def function(self) -> Callable[..., Any]:
        return self.settings.function

    def many(self, given: dict[str, Any], items: Sequence[Answered], key: str = "") -> list[Verdict]:
        """Call the function once for all completions."""
        log = _Log()
        given = {**given, "log_extra": log.log_extra, "log_metric": log.log_metric}
        try:
            values = self._repeated(given, len(items), log)
        except (Exception, SystemExit, LimitReachedError) as error:
            return [_failed(error, item) for item in items]
        verdicts = [_read(value, item, key) for value, item in zip(values, items, strict=True)]
        return log.on(verdicts)

    def one(self, given: dict[str, Any], item: Answered, key: str) -> Verdict:
        """Call the function for one completion."""
        try:
            value = self._repeated(given)
        except (Exception, SystemExit, LimitReachedError) as error:
            return _failed(error, item)
        return _read(value, item, key)

    def _repeated(self, given: dict[str, Any], count: int | None = None, log: _Log | None = None) -> Any:
        """Return the result of the first call that does not raise, as a list if `count` results are expected."""
        for attempt in range(self.settings.retries + 1):
            try:
                with limited(self.settings.seconds, self.settings.wall_seconds):
                    result = _call(self.function, given)
                return result if count is None else _as_list(result, count)
            except (Exception, SystemExit):
                if attempt == self.settings.retries:
                    raise
                if log is not None:
                    log.clear()
        raise AssertionError("unreachable")


@dataclass(frozen=True)
class _Log:
    """`_Log` keeps what a function logs in one call by TRL's `log_extra` and `log_metric`."""

    extra: dict[str, list[Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def log_extra(self, column: str, values: Sequence[Any]) -> None:
        self.extra.setdefault(column, []).extend(values)

    def log_metric(self, name: str, value: float) -> None:
        self.metrics[name] = float(value)

    def clear(self) -> None:
        self.extra.clear()
        self.metrics.clear()

    def on(self, verdicts: Sequence[Verdict]) -> list[Verdict]:
        """Return the verdicts with what was logged; a column of another length than the call is left out."""
        columns = {name: values for name, values in self.extra.items() if len(values) == len(verdicts)}
        return [
            replace(verdict, logged={name: values[number] for name, values in columns.items()}, metrics=self.metrics)
            for number, verdict in enumerate(verdicts)
        ]


def _call(function: Callable[..., Any], given: dict[str, Any]) -> Any:
    parameters = _parameters(function).values()
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names = {parameter.name for parameter in parameters}
        given = {name: value for name, value in given.items() if name in names}
    result = function(**given)
    if inspect.isawaitable(result):
        # A thread of its own, because the caller may be inside an event loop already (a notebook).
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, _awaited(result)).result()
    return result


async def _awaited(result: Awaitable[Any]) -> Any:
    return await result


def _as_list(values: Any, count: int) -> list[Any]:
    """Return the list in an array, a tensor or a sequence; ValueError if it lacks an entry for some completion."""
    found = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(found, str | Mapping) or not isinstance(found, Sequence) or len(found) != count:
        size = f" of {len(found)}" if isinstance(found, Sequence) else ""
        raise ValueError(f"it returned {type(values).__name__}{size} where a list of {count} was expected")
    return list(found)


def _read(value: Any, item: Answered, key: str) -> Verdict:
    """Return the verdict of one result: a number, or a table with the number under `key`."""
    try:
        right = _own_verdict(value) if isinstance(value, Mapping) else None
        parts = _parts(value, key) if isinstance(value, Mapping) else {}
        value = value[key] if isinstance(value, Mapping) else value
        if value is None:
            return Verdict(math.nan, reason="the function gave no score", right=right, parts=parts)
        number = float(value)
    except Exception as error:
        return _failed(error, item)
    reason = "" if math.isfinite(number) else f"it gave {number}"
    return Verdict(number, failed=bool(reason), reason=reason, right=right, parts=parts)


def _own_verdict(table: Mapping[str, Any]) -> bool | None:
    """Return what the table says of right and wrong, or None if it says nothing."""
    return next((float(table[key]) > 0.5 for key in _OWN_VERDICT if table.get(key) is not None), None)


def _parts(table: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return the other numbers of a result table, such as EasyR1's `format` and `accuracy`."""
    numbers = {name: value for name, value in table.items() if name != key and isinstance(value, int | float)}
    return {str(name): float(value) for name, value in numbers.items()}


def _failed(error: BaseException, item: Answered) -> Verdict:
    """Return a verdict with the error, its place in the user's file, and an input that leads to it."""
    frames = [entry for entry in traceback.extract_tb(error.__traceback__) if not _is_library(entry.filename)][-1:]
    place = f" at {Path(frames[0].filename).name}:{frames[0].lineno}" if frames else ""
    shown = item.completion if len(item.completion) <= 80 else f"{item.completion[:77]}..."
    kind = "limit" if isinstance(error, LimitReachedError) else type(error).__name__
    reason = f"{kind}: {error}{place}, for the completion {shown!r} with the answer {item.answer!r}"
    return Verdict(math.nan, failed=True, reason=reason)


def _is_library(filename: str) -> bool:
    """Return whether a file belongs to this package, to Python or to an installed package."""
    libraries = (str(Path(__file__).parent), sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"))
    return filename.startswith(libraries)


VERIFIERS: dict[str, type[Verifier]] = {cls.name: cls for cls in (Graded, Function, Code)}
