"""A task from data: the problems come from a file or a data set, and a verifier judges the answers."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from typing import Any, Literal

from aepo.engines.right import RightRule
from aepo.errors import InvalidValue, require
from aepo.plugins import absolute, path_of_object
from aepo.tasks.base import Problem, Task
from aepo.tasks.chat import ChatSettings
from aepo.tasks.code import Code, code_record
from aepo.tasks.functions import Function
from aepo.tasks.rewards import Answered, Begun, Graded, Verdict, Verifier
from aepo.tasks.rows import Columns, Row, load_rows
from aepo.tasks.styles import CODE_STYLES, Rendered, render
from aepo.tasks.weighted import Weighted


@dataclass(frozen=True)
class Data(ChatSettings, Task):
    """`Data` takes problems from a file or a data set: `--set task=data --set task.train=problems.parquet`.

    A training row whose prompt, with its images, is in the evaluation set is left out of training. Rows that hold chat
    messages keep them.
    """

    train: str = ""
    """Training problems: a file (.jsonl, .json, .parquet, .csv) or a data set, `name[@config][:split]`."""
    eval: str = ""
    """Evaluation problems, written as `train`. Without it, the last `held_out` rows of a fixed shuffle of `train` are
    kept.
    """
    held_out: int = 128
    """Number of rows of `train` that are kept for evaluation when there is no `eval`; at most half of them. 0 keeps
    none.
    """
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
    """What judges a completion. With `rewards` its settings hold for each of them."""
    rewards: tuple[str, ...] = ()
    """Several judges whose rewards are added: functions, written as `verifier.path` is, and `graded` for the known
    answer. Empty takes `verifier` alone.
    """
    reward_weights: tuple[float, ...] = ()
    """Weight of each of `rewards`; empty weighs each with 1."""
    right: str | float = "auto"
    """Which completions count as right: a threshold that the reward must exceed, `best` (of its prompt), `verdict` (the
    function's own) or `auto` (docs/data.md).
    """
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
        require(self.held_out >= 0, "task.held_out", self.held_out, "a number of rows, 0 or more")
        wanted = f"a list of {len(self.rewards)}, one for each of task.rewards" if self.rewards else "left out"
        ok = len(self.reward_weights) in (0, len(self.rewards))
        require(ok, "task.reward_weights", list(self.reward_weights), wanted)
        _ = self.right_rule
        require(self.max_prompt >= 1, "task.max_prompt", self.max_prompt, "at least 1 token")
        require(self.max_response >= 1, "task.max_response", self.max_response, "at least 1 token")

    @property
    def max_tokens(self) -> int:
        """Return `max_response`, tokens."""
        return self.max_response

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return row `index` of an endless series of shuffles, one for each pass over the data."""
        rows = self._rows.train
        epoch, place = divmod(index, len(rows))
        return self._problem(rows[_order(len(rows), seed, epoch)[place]])

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` rows of the evaluation set."""
        rows = self._rows.held
        if count > len(rows):
            wanted = f"at most the evaluation set's {len(rows)} rows (task.held_out, task.eval), or evaluation.every=0"
            raise InvalidValue("evaluation.prompts", count, wanted)
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
        place: tuple[int, int] = (0, 0),
    ) -> list[Verdict]:
        """Return the verifier's verdicts on all completions at once."""
        return self.start(problems, texts, truncated, tokens, place).wait()

    @property
    def background(self) -> bool:
        """Return whether the verifier judges while the caller goes on."""
        return self._judge.background

    def start(
        self,
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> Begun:
        """Let the verifier begin to judge completions."""
        ids = tokens if tokens is not None else [()] * len(texts)
        return self._judge.start(
            [
                Answered(p["prompt"], text, p["answer"], p["columns"], own, p["messages"], place)
                for p, text, own in zip(problems, texts, ids, strict=True)
            ]
        )

    @property
    def right_rule(self) -> RightRule:
        """Return the rule that `right` names."""
        return RightRule.of(self.right)

    @property
    def special_tokens(self) -> bool:
        """Return whether the verifier wants special tokens kept inside the texts."""
        return self._judge.special_tokens

    @cached_property
    def _judge(self) -> Verifier:
        """Return the verifier, or the weighted sum of `rewards`."""
        if not self.rewards:
            return self.verifier
        names = [path.rpartition(":")[2] for path in self.rewards]
        named = [name if names.count(name) == 1 else path for name, path in zip(names, self.rewards, strict=True)]
        return Weighted(tuple(zip(named, map(self._part, self.rewards), strict=True)), self.reward_weights)

    def _part(self, path: str) -> Verifier:
        if path == Graded.name:
            return self.verifier if isinstance(self.verifier, Graded) else Graded()
        return replace(self.verifier if isinstance(self.verifier, Function) else Function(), path=path)

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return the row's worked solution, or None if the data has none."""
        found: str | None = problem["solution"]
        return found

    def check(self) -> None:
        """Import the reward functions, and find their signatures."""
        self._judge.check()

    def fitted(self, length: Callable[[Problem], int]) -> Data:
        """Return the task with every prompt checked against `max_prompt`; longer ones are refused or skipped.

        Args:
            length: Returns the number of tokens of a problem's prompt.

        Raises:
            InvalidValue: A prompt is too long, or no row is left.
        """
        self._judge.check()
        fits: list[list[Row]] = []
        left_out = 0
        for rows in (self._rows.train, self._rows.held):
            long = [row for row in rows if length(self._problem(row)) > self.max_prompt]
            if long and self.long_prompts == "refuse":
                first = long[0]
                tokens, found = length(self._problem(first)), f"{first.where}; {len(long)} rows are too long"
                got = f"{tokens} tokens in row {first.id} ({found})"
                wanted = f"at most task.max_prompt = {self.max_prompt}; or set task.long_prompts=skip"
                raise InvalidValue("prompt", got, wanted)
            dropped = set(map(id, long))
            left_out += len(dropped)
            fits.append([row for row in rows if id(row) not in dropped])
            if rows and not fits[-1]:
                raise InvalidValue(
                    "task.max_prompt", self.max_prompt, "long enough for at least one prompt of the data"
                )
        task = copy.copy(self)
        facts = {**self._rows.facts, "rows_train": len(fits[0]), "rows_evaluation": len(fits[1]), "rows_long": left_out}
        task.__dict__["_rows"] = replace(self._rows, train=fits[0], held=fits[1], facts=facts)
        return task

    def located(self) -> Data:
        """Return the task with absolute paths of its files and functions."""
        verifier = self.verifier
        if isinstance(verifier, Function):
            verifier = replace(verifier, path=path_of_object(verifier.path))
        rewards = tuple(map(path_of_object, self.rewards))
        train, held, template = absolute(self.train), absolute(self.eval), self.template_file
        return replace(self, train=train, eval=held, chat_template=template, verifier=verifier, rewards=rewards)

    def facts(self) -> dict[str, Any]:
        """Return the numbers of rows: read, trained on, kept for evaluation, repeated and left out."""
        return dict(self._rows.facts)

    def fingerprint(self) -> str:
        """Return a digest of all rows that were read, in their order."""
        return self._rows.digest

    @cached_property
    def _rows(self) -> _Rows:
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
        known = {row.shown for row in held}
        kept = [row for row in train if row.shown not in known]
        if not kept:
            raise InvalidValue("task.train", f"{len(train)} rows", "rows left to train on beside those of evaluation")
        shared = len(train) - len(kept) - (0 if self.eval else len(held))
        facts = {
            "rows_read": len(train) + (len(held) if self.eval else 0),
            "rows_train": len(kept),
            "rows_evaluation": len(held),
            "rows_shared": shared,
            "rows_repeated": len(kept) - len({row.shown for row in kept}),
        }
        return _Rows(kept, held, facts, _digest([*train, *(held if self.eval else ())]))

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
        problem = Problem(row.id, shown.text, data, shown.messages, row.template_kwargs, row.where, row.images)
        asked = self.asked(problem)
        data["messages"] = asked.messages
        return asked


@dataclass(frozen=True)
class _Rows:
    """`_Rows` holds the rows of a task and what is known of them."""

    train: Sequence[Row]
    """The rows to train on."""
    held: Sequence[Row]
    """The rows of the evaluation set."""
    facts: Mapping[str, int]
    """Numbers of rows, by name."""
    digest: str
    """Digest of all rows that were read."""


def _digest(rows: Sequence[Row]) -> str:
    found = hashlib.sha256()
    for row in rows:
        seen = (row.id, row.text, row.answer, row.messages, row.solution, row.columns)
        found.update(repr((*seen, row.images) if row.images else seen).encode())
    return found.hexdigest()


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int | str) -> list[int]:
    order = list(range(count))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order
