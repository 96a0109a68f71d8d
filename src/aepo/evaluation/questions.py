"""This module turns benchmarks, files and tasks into problems with their prompts and their judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from aepo.engines.right import RightRule
from aepo.errors import InvalidValue, UnknownName, require
from aepo.evaluation.answers import EXTRACTORS, Extractor, whole
from aepo.evaluation.benchmarks import BenchmarkRows
from aepo.grading.base import Grader
from aepo.grading.qwen import QwenGrader, known_answer
from aepo.grading.table import GRADERS
from aepo.grading.text import accepted
from aepo.model.policy import Policy
from aepo.sampling.prompts import made_prompt
from aepo.tasks import Data, Problem, Task
from aepo.tasks.chat import ChatSettings
from aepo.tasks.code import Code
from aepo.tasks.rewards import Answered, Begun, Graded, Verdict, Verifier
from aepo.tasks.rows import Row
from aepo.tasks.styles import CODE_STYLES, Rendered, render
from aepo.types import Prompt

T = TypeVar("T")

Judge = Callable[..., list[Verdict]]
"""A function that judges completions, with the arguments of `aepo.tasks.Task.judge`."""

Starter = Callable[..., Begun]
"""A function with the arguments of `Judge` that begins to judge, and returns at once."""
# The styles of Qwen2.5-Math's evaluation. It tells which two answers are possible.
_QWEN_STYLES = ("qwen25-math-cot", "qwen-boxed", "cot")
_HINTS = {"true": " (True or False)", "false": " (True or False)", "yes": " (Yes or No)", "no": " (Yes or No)"}

# The defaults of benchmarks and files.
STYLE, GRADER, MAX_TOKENS = "qwen25-math-cot", "math", 8192
# The same of programs.
CODE_STYLE, CODE = "qwen-code", "code"


@dataclass(frozen=True)
class Questions:
    """`Questions` holds the problems of one benchmark, file or task, and how completions of them are judged."""

    name: str
    """The name in files and tables."""
    source: str
    """Where the problems are from: a file, a data set, or the settings of a task."""
    problems: tuple[Problem, ...]
    """The problems."""
    judge: Judge
    """Returns the verdicts on completions, from `Problem.data`, the texts, and whether each text was cut."""
    answer: Extractor
    """Returns the answer that a completion votes for."""
    max_tokens: int
    """The longest completion, in tokens."""
    style: str
    """The name of the prompt style."""
    grader: str
    """The name of the grader."""
    right: RightRule = RightRule()
    """The rule that says which completions are correct."""
    special_tokens: bool = True
    """Whether the judge gets texts with the special tokens inside a completion."""
    start: Starter | None = None
    """Begins to judge completions and returns at once; None if `judge` is all there is."""

    def prompts(self, policy: Policy) -> list[Prompt]:
        """Return the problems as tokens of this policy.

        Raises:
            InvalidValue: The prompts are chat turns and the tokenizer has no chat template.
        """
        return [made_prompt(policy, problem) for problem in self.problems]

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Return everything that decides what is sampled and how it is judged, as plain JSON data.

        Args:
            prompts: The problems as tokens; a digest of them is part of the result.
        """
        digest = hashlib.sha256()
        for prompt in prompts:
            digest.update(repr((prompt.id, prompt.tokens, prompt.problem.get("answer"), *prompt.images)).encode())
        return {
            "name": self.name,
            "source": self.source,
            "problems": len(self.problems),
            "prompt": self.style,
            "first_prompt": self.problems[0].text,
            "grader": self.grader,
            "right": self.right.describe(alone=True),
            "max_tokens": self.max_tokens,
            "digest": digest.hexdigest()[:16],
        }


def from_rows(
    source: BenchmarkRows,
    style: str | None,
    grader: str | None,
    max_tokens: int | None,
    limit: int | None,
    chat: ChatSettings = ChatSettings(),
) -> Questions:
    """Return the problems of a benchmark or a file.

    Args:
        source: The rows. A row that holds chat messages keeps them; `style` does not apply to it.
        style: The name of the prompt style; None takes `STYLE`, or `CODE_STYLE` for programs.
        grader: The name of the grader; None takes `GRADER`, or `CODE` for programs.
        max_tokens: The longest completion, in tokens; None takes `MAX_TOKENS`.
        limit: The number of rows that are used; None uses all of them.
        chat: What chat prompts hold besides the problem.

    Raises:
        InvalidValue: There is no such style or grader, or it does not fit the rows.
    """
    style = style or (CODE_STYLE if source.code else STYLE)
    grader = grader or (CODE if source.code else GRADER)
    render(style, "", "--prompt")
    if grader not in (*GRADERS, CODE):
        raise UnknownName("--grader", grader, (*GRADERS, CODE))
    if source.code != (grader == CODE):
        wanted = f"{CODE} for {source.name}" if source.code else f"one of {', '.join(GRADERS)} for {source.name}"
        raise InvalidValue("--grader", grader, wanted)
    require(not source.code or style in CODE_STYLES, "--prompt", style, f"one of {', '.join(CODE_STYLES)} for programs")
    problems = []
    for row in source.rows[:limit]:
        shown = Rendered(row.text, row.messages) if row.messages else _shown(style, row)
        data = {"prompt": row.text, "answer": row.answer, "columns": row.columns}
        problem = Problem(row.id, shown.text, data, shown.messages, row.template_kwargs, row.where, row.images)
        problems.append(chat.asked(problem))
    verifier: Verifier = Code() if source.code else Graded(_grader(grader, source.name))
    start = None
    if isinstance(verifier, Code):
        verifier.check()
        start = _over(verifier.start)
    limit_tokens = max_tokens or MAX_TOKENS
    judge, answer = _over(verifier.judge), EXTRACTORS[grader]
    return Questions(
        source.name,
        source.source,
        tuple(problems),
        judge,
        answer,
        limit_tokens,
        style,
        grader,
        special_tokens=verifier.special_tokens,
        start=start,
    )


def _shown(style: str, row: Row) -> Rendered:
    """Return the problem in a style; the styles of Qwen2.5-Math's evaluation name the choice in yes-or-no questions."""
    if style in CODE_STYLES:
        return render(style, row.text)
    hint = _HINTS.get(known_answer(accepted(row.answer)[0]).lower(), "") if style in _QWEN_STYLES else ""
    return render(style, row.text + hint)


def _grader(name: str, source: str) -> Grader:
    """Return the grader; qwen treats Minerva Math and MATH in the ways of the original program."""
    if name != QwenGrader.name:
        return GRADERS[name]()
    return QwenGrader(units=source in ("minerva", "minerva_math"), from_solution=source == "math500")


def from_task(name: str, task: Task, count: int, max_tokens: int | None) -> Questions:
    """Return the evaluation problems of a task, with the task's own prompts and verifier.

    Args:
        name: The name in files and tables.
        task: The task.
        count: The number of problems.
        max_tokens: The longest completion, in tokens; None takes the task's own limit.
    """
    problems = tuple(task.eval_problems(count))
    verifier = task.verifier if isinstance(task, Data) else None
    grader = verifier.grader.name if isinstance(verifier, Graded) else None
    if isinstance(verifier, Code):
        grader = CODE
    answer = whole if grader is None else EXTRACTORS[grader]
    own = "the task's own"
    limit = max_tokens or task.max_tokens
    return Questions(
        name,
        repr(task),
        problems,
        task.judge,
        answer,
        limit,
        getattr(task, "style", own),
        grader or own,
        task.right_rule,
        task.special_tokens,
        task.start if task.background else None,
    )


def _over(function: Callable[[Sequence[Answered]], T]) -> Callable[..., T]:
    """Return a function of `Answered` as one with the arguments of `Task.judge`."""

    def judge(
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
    ) -> T:
        ids = tokens if tokens is not None else [()] * len(texts)
        items = zip(problems, texts, ids, strict=True)
        return function([Answered(p["prompt"], text, p["answer"], p["columns"], own) for p, text, own in items])

    return judge
