"""A task from data: the problems come from a file or a data set, and a verifier judges the answers."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

from aepo.errors import InvalidValue, require
from aepo.tasks.base import Problem, Task
from aepo.tasks.code import Code, code_record
from aepo.tasks.rewards import Answered, Graded, Verdict, Verifier
from aepo.tasks.rows import Columns, Row, load_rows
from aepo.tasks.styles import CODE_STYLES, Rendered, render


@dataclass(frozen=True)
class Data(Task):
    """`Data` takes problems from a file or a data set: `--set task=data --set task.train=problems.parquet`.

    A training row whose prompt is in the evaluation set is left out of training. Rows that hold chat messages keep
    them.
    """

    train: str = ""
    """Training problems: a file (.jsonl, .json, .parquet, .csv) or a data set, `name[@config][:split]`."""
    eval: str = ""
    """Evaluation problems, written as `train`. Without it, the last `held_out` rows of a fixed shuffle of `train` are
    kept.
    """
    held_out: int = 128
    """Number of rows of `train` that are kept for evaluation when there is no `eval`; at most half of them."""
    prompt: str | None = None
    """Column of the prompt; none takes the first of prompt, problem and question that is there."""
    answer: str | None = None
    """Column of the known answer; none takes the first of answer, final_answer, ground_truth and
    reward_model.ground_truth that is there, or else what the solution boxes last.
    """
    solution_column: str | None = None
    """Column of a worked solution; none takes `solution` if it is there."""
    style: str = "boxed"
    """How a problem becomes a prompt (docs/data.md). With `verifier=code` the default is `code`."""
    verifier: Verifier = Graded()
    """What judges a completion."""
    max_prompt: int = 1024
    """Longest prompt, tokens."""
    max_response: int = 2048
    """Longest completion, tokens."""
    long_prompts: Literal["refuse", "skip"] = "refuse"
    """What happens to a longer prompt: `refuse` ends before the run starts, `skip` leaves such rows out."""

    def __post_init__(self) -> None:
        render(self.style, "")
        if isinstance(self.verifier, Code) and self.style != "boxed":
            wanted = f"one of {', '.join(CODE_STYLES)} with verifier=code"
            require(self.style in CODE_STYLES, "task.style", self.style, wanted)
        require(self.held_out >= 1, "task.held_out", self.held_out, "at least 1 row")
        require(self.max_prompt >= 1, "task.max_prompt", self.max_prompt, "at least 1 token")
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")

    @property
    def max_tokens(self) -> int:
        """Return `max_response`, tokens."""
        return self.max_response

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return row `index` of an endless series of shuffles, one for each pass over the data."""
        rows = self._rows[0]
        epoch, place = divmod(index, len(rows))
        return self._problem(rows[_order(len(rows), seed, epoch)[place]])

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` rows of the evaluation set."""
        rows = self._rows[1]
        if count > len(rows):
            raise InvalidValue("evaluation.prompts", count, f"at most the evaluation set's {len(rows)} rows")
        return [self._problem(row) for row in rows[:count]]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return the verifier's reward of one completion."""
        return self.judge([problem], [text], [truncated])[0].reward

    def judge(
        self,
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
    ) -> list[Verdict]:
        """Return the verifier's verdicts on all completions at once."""
        ids = tokens if tokens is not None else [()] * len(texts)
        return self.verifier.judge(
            [
                Answered(p["prompt"], text, p["answer"], p["columns"], own, p["messages"])
                for p, text, own in zip(problems, texts, ids, strict=True)
            ]
        )

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return the row's worked solution, or None if the data has none."""
        found: str | None = problem["solution"]
        return found

    def fitted(self, length: Callable[[Problem], int]) -> Data:
        """Return the task with every prompt checked against `max_prompt`; longer ones are refused or skipped.

        Args:
            length: Returns the number of tokens of a problem's prompt.

        Raises:
            InvalidValue: A prompt is too long, or no row is left.
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
        """Return the training rows and the evaluation rows."""
        if not self.train:
            raise InvalidValue("task.train", self.train, "a file or a data set: --set task.train=problems.parquet")
        columns = Columns(self.prompt, self.answer, self.solution_column)
        load = partial(load_rows, adapt=code_record) if isinstance(self.verifier, Code) else load_rows
        train = load(self.train, columns, "task.train")
        if self.eval:
            held = load(self.eval, columns, "task.eval")
        else:
            order = _order(len(train), 0, "held out")
            held = [train[i] for i in order[len(train) - min(self.held_out, len(train) // 2) :]]
        known = {row.text for row in held}
        kept = [row for row in train if row.text not in known]
        if not kept or not held:
            raise InvalidValue("task.train", f"{len(train)} rows", "rows left to train on beside those of evaluation")
        return kept, held

    @property
    def _style(self) -> str:
        """Return the style; a box holds no program, so the default for code is another one."""
        return "code" if isinstance(self.verifier, Code) and self.style == "boxed" else self.style

    def _problem(self, row: Row) -> Problem:
        shown = Rendered(row.text, row.messages) if row.messages else render(self._style, row.text)
        data: dict[str, Any] = {
            "prompt": row.text,
            "answer": row.answer,
            "columns": row.columns,
            "solution": row.solution,
        }
        data["messages"] = shown.messages
        return Problem(row.id, shown.text, data, shown.messages)


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int | str) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
