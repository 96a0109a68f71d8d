"""A task from data: the problems of a file or a data set, judged by a verifier."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

from aepo.errors import InvalidValue, require
from aepo.tasks.base import Problem, Task
from aepo.tasks.rewards import Answered, Graded, Verdict, Verifier
from aepo.tasks.rows import Columns, Row, load_rows
from aepo.tasks.styles import Rendered, render


@dataclass(frozen=True)
class Data(Task):
    """`--set task=data --set task.train=problems.parquet`.

    train, eval: files (.jsonl, .json, .parquet, .csv) or data sets, `name[@config][:split]`. Without `eval`, the last
    `held_out` rows of a fixed shuffle of `train` are kept for it. A training row whose prompt is in the evaluation set
    is left out of training. prompt, answer, solution_column: columns, or none for the usual ones (data.py). style: how
    a problem becomes a prompt (prompts.py); rows that hold chat messages keep them. max_prompt: longest prompt,
    tokens; long_prompts: `refuse` a longer one before the run starts, or `skip` such rows. max_response: longest
    completion, tokens.
    """

    train: str = ""
    eval: str = ""
    held_out: int = 128
    prompt: str | None = None
    answer: str | None = None
    solution_column: str | None = None
    style: str = "boxed"
    verifier: Verifier = Graded()
    max_prompt: int = 1024
    max_response: int = 2048
    long_prompts: Literal["refuse", "skip"] = "refuse"

    def __post_init__(self) -> None:
        render(self.style, "")
        require(self.held_out >= 1, "task.held_out", self.held_out, "at least 1 row")
        require(self.max_prompt >= 1, "task.max_prompt", self.max_prompt, "at least 1 token")
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")

    @property
    def max_tokens(self) -> int:
        """`max_response`."""
        return self.max_response

    def train_problem(self, seed: int, index: int) -> Problem:
        """Row `index` of an endless series of shuffles, one for each pass over the data."""
        rows = self._rows[0]
        epoch, place = divmod(index, len(rows))
        return self._problem(rows[_order(len(rows), seed, epoch)[place]])

    def eval_problems(self, count: int) -> list[Problem]:
        """The first rows of the evaluation set."""
        rows = self._rows[1]
        if count > len(rows):
            raise InvalidValue("evaluation.prompts", count, f"at most the evaluation set's {len(rows)} rows")
        return [self._problem(row) for row in rows[:count]]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """One verdict."""
        return self.judge([problem], [text], [truncated])[0].reward

    def judge(
        self, problems: Sequence[Mapping[str, Any]], texts: Sequence[str], truncated: Sequence[bool]
    ) -> list[Verdict]:
        """All at once, by the verifier."""
        pairs = zip(problems, texts, strict=True)
        return self.verifier.judge([Answered(p["prompt"], text, p["answer"], p["columns"]) for p, text in pairs])

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """The row's worked solution, if the data has one."""
        found: str | None = problem["solution"]
        return found

    def fitted(self, length: Callable[[Problem], int]) -> Data:
        """With every prompt checked against `max_prompt`; too long ones are refused or skipped.

        length: tokens of a problem's prompt. Raises `InvalidValue` for the first one that is too long, or when nothing
        is left.
        """
        self.verifier.check()
        fits: list[list[Row]] = []
        for rows in self._rows:
            long = [row for row in rows if length(self._problem(row)) > self.max_prompt]
            if long and self.long_prompts == "refuse":
                got = f"{length(self._problem(long[0]))} tokens in row {long[0].id} ({len(long)} rows are too long)"
                wanted = f"at most task.max_prompt = {self.max_prompt}; or set task.long_prompts=skip"
                raise InvalidValue("prompt", got, wanted)
            dropped = set(map(id, long))
            fits.append([row for row in rows if id(row) not in dropped])
            if not fits[-1]:
                raise InvalidValue(
                    "task.max_prompt", self.max_prompt, "long enough for at least one prompt of the data"
                )
        task = copy.copy(self)
        task.__dict__["_rows"] = (fits[0], fits[1])
        return task

    @cached_property
    def _rows(self) -> tuple[list[Row], list[Row]]:
        """Training and evaluation rows."""
        if not self.train:
            raise InvalidValue("task.train", self.train, "a file or a data set: --set task.train=problems.parquet")
        columns = Columns(self.prompt, self.answer, self.solution_column)
        train = load_rows(self.train, columns, "task.train")
        if self.eval:
            held = load_rows(self.eval, columns, "task.eval")
        else:
            order = _order(len(train), 0, "held out")
            held = [train[i] for i in order[len(train) - min(self.held_out, len(train) // 2) :]]
        known = {row.text for row in held}
        kept = [row for row in train if row.text not in known]
        if not kept or not held:
            raise InvalidValue("task.train", f"{len(train)} rows", "rows left to train on beside those of evaluation")
        return kept, held

    def _problem(self, row: Row) -> Problem:
        shown = Rendered(row.text, row.messages) if row.messages else render(self.style, row.text)
        data = {"prompt": row.text, "answer": row.answer, "columns": row.columns, "solution": row.solution}
        return Problem(row.id, shown.text, data, shown.messages)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int | str) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
