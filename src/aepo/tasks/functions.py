"""`Function` calls users' reward functions as TRL, verl and EasyR1 call them: by keyword, with their types and units.

The calls follow TRL 1.16 (`GRPOTrainer._calculate_rewards`), verl 0.9.1 (`reward_manager/naive.py` and `batch.py`) and
EasyR1 (`verl/workers/reward/function.py`, 46c6c21).
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from aepo.errors import InvalidValue
from aepo.tasks.code import Code
from aepo.tasks.rewards import Answered, Graded, Verdict, Verifier

# A parameter of one of these names tells whose signature a function has.
_TELLING = {
    "verl-batch": ("solution_strs",),
    "verl": ("solution_str",),
    "trl": ("completions", "completion_ids", "prompts"),
    "easyr1": ("reward_inputs", "reward_input"),
}


@dataclass(frozen=True)
class Function(Verifier):
    """`Function` scores completions with a Python function that was written for TRL, verl or EasyR1.

    Arguments go by keyword, and a function gets those that it names (all of them if it has `**kwargs`). It may be
    `async`, and it may be a callable object.

    - `trl`: prompts, completions, completion_ids, log_extra, log_metric and a list for each column -> one number each.
      In rows of chat messages, prompts and completions are lists of messages, else texts.
    - `verl`: data_source, solution_str, ground_truth, extra_info -> a number or a table with `score`; one call for each
      completion.
    - `verl-batch`: data_sources, solution_strs, ground_truths, extra_infos -> a list of these.
    - `easyr1`: reward_inputs, a list of tables with `response`, `response_length` (tokens) and `ground_truth` -> a list
      of tables with `overall`; or reward_input, one such table -> one table.

    A result may be a list, an array or a tensor. None (TRL: no score for this completion) leaves the completion out and
    is no failure. If the function raises, `SystemExit` included, every completion of that call gets a failed verdict
    without a reward.
    """

    name: ClassVar[str] = "function"
    path: str = ""
    """The function: `module:function` or `file.py:function`."""
    signature: Literal["auto", "trl", "verl", "verl-batch", "easyr1"] = "auto"
    """Whose signature the function has; `auto` tells by the names of its parameters."""

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Call the function on all completions."""
        if not items:
            return []
        calls = {"trl": _trl, "verl": _verl, "verl-batch": _verl_batch, "easyr1": _easyr1}
        return calls[self._signature](self._function, items)

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
        except (Exception, SystemExit) as error:
            raise InvalidValue("verifier.path", self.path, f"importable ({type(error).__name__}: {error})") from None
        if not callable(function) or isinstance(function, type):
            raise InvalidValue("verifier.path", self.path, "a function or a callable object")
        found: Callable[..., Any] = function
        return found

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


def _load_file(path: str) -> Any:
    spec = importlib.util.spec_from_file_location("aepo_user_reward", path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters


# --- one call for each signature ----------------------------------------------------------------------------


def _trl(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    keys = dict.fromkeys(key for item in items for key in item.columns if key not in ("prompt", "completion"))
    given: dict[str, Any] = {key: [item.columns.get(key) for item in items] for key in keys}
    given.setdefault("answer", [item.answer for item in items])
    chats = [[{"role": "assistant", "content": item.completion}] for item in items]
    given |= {
        "prompts": [_turns(item) or item.prompt for item in items],
        "completions": [chat if item.messages else item.completion for chat, item in zip(chats, items, strict=True)],
        "completion_ids": [list(item.tokens) for item in items],
        "log_extra": _not_logged,
        "log_metric": _not_logged,
    }
    return _many(function, given, items)


def _verl(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    return [_one(function, _verl_item(item), item, "score") for item in items]


def _verl_batch(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    tables = [_verl_item(item) for item in items]
    return _many(function, {f"{key}s": [table[key] for table in tables] for key in tables[0]}, items, "score")


def _verl_item(item: Answered) -> dict[str, Any]:
    columns = item.columns
    model = columns.get("reward_model")
    known = model.get("ground_truth") if isinstance(model, Mapping) else None
    return {
        "data_source": columns.get("data_source", ""),
        "solution_str": item.completion,
        "ground_truth": item.answer if known is None else known,
        "extra_info": {"num_turns": None, "rollout_reward_scores": {}, **(columns.get("extra_info") or columns)},
    }


def _easyr1(function: Callable[..., Any], items: Sequence[Answered]) -> list[Verdict]:
    tables = [
        {"response": item.completion, "response_length": len(item.tokens), "ground_truth": item.answer}
        for item in items
    ]
    name = next(iter(_parameters(function)))
    if not name.endswith("s"):
        return [_one(function, {name: table}, item, "overall") for table, item in zip(tables, items, strict=True)]
    return _many(function, {name: tables}, items, "overall")


def _not_logged(name: str, value: Any) -> None:
    """Take what a function logs by TRL's `log_extra` and `log_metric`; this loop does not log it."""


def _turns(item: Answered) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in item.messages]


# --- calling, and reading the result ------------------------------------------------------------------------


def _many(
    function: Callable[..., Any], given: dict[str, Any], items: Sequence[Answered], key: str = ""
) -> list[Verdict]:
    """Call the function once for all completions."""
    try:
        values = _as_list(_call(function, given), len(items))
    except (Exception, SystemExit) as error:
        return [_failed(error, item) for item in items]
    return [_read(value, item, key) for value, item in zip(values, items, strict=True)]


def _one(function: Callable[..., Any], given: dict[str, Any], item: Answered, key: str) -> Verdict:
    """Call the function for one completion."""
    try:
        value = _call(function, given)
    except (Exception, SystemExit) as error:
        return _failed(error, item)
    return _read(value, item, key)


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
        value = value[key] if isinstance(value, Mapping) else value
        if value is None:
            return Verdict(math.nan, reason="the function gave no score")
        number = float(value)
    except Exception as error:
        return _failed(error, item)
    return Verdict(
        number, failed=not math.isfinite(number), reason="" if math.isfinite(number) else f"it gave {number}"
    )


def _failed(error: BaseException, item: Answered) -> Verdict:
    """Return a verdict with the error, its place in the user's file, and an input that leads to it."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {Path(frame[0].filename).name}:{frame[0].lineno}" if frame else ""
    shown = item.completion if len(item.completion) <= 80 else f"{item.completion[:77]}..."
    reason = f"{type(error).__name__}: {error}{place}, for the completion {shown!r} with the answer {item.answer!r}"
    return Verdict(math.nan, failed=True, reason=reason)


VERIFIERS: dict[str, type[Verifier]] = {cls.name: cls for cls in (Graded, Function, Code)}
