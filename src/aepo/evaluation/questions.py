"""What is asked: problems ready to be sampled, with their judge."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aepo.errors import InvalidValue
from aepo.evaluation.answers import EXTRACTORS, Extractor, whole
from aepo.evaluation.benchmarks import Found
from aepo.grading.table import GRADERS
from aepo.model.policy import Policy
from aepo.sampling.prompts import prompt_tokens
from aepo.tasks import Data, Problem, Task
from aepo.tasks.rewards import Answered, Graded, Verdict, Verifier
from aepo.tasks.styles import Rendered, render
from aepo.types import Prompt

Judge = Callable[..., list[Verdict]]

STYLE, GRADER, MAX_TOKENS = "qwen25-math-cot", "math", 8192


@dataclass(frozen=True)
class Questions:
    """One benchmark, file or task.

    source: where its problems are from. judge: verdicts on completions, from `Problem.data`, texts and whether they
    were cut. answer: what a completion votes for. max_tokens: its longest completion. style, grader: their names.
    """

    name: str
    source: str
    problems: tuple[Problem, ...]
    judge: Judge
    answer: Extractor
    max_tokens: int
    style: str
    grader: str

    def prompts(self, policy: Policy) -> list[Prompt]:
        """The problems as the model reads them; `InvalidValue` where it cannot."""
        return [Prompt(p.id, prompt_tokens(policy, p), p.data) for p in self.problems]

    def settings(self, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """All that decides what is sampled and how it is judged, as plain JSON data."""
        digest = hashlib.sha256()
        for prompt in prompts:
            digest.update(repr((prompt.id, prompt.tokens, prompt.problem.get("answer"))).encode())
        return {
            "name": self.name,
            "source": self.source,
            "problems": len(self.problems),
            "prompt": self.style,
            "first_prompt": self.problems[0].text,
            "grader": self.grader,
            "max_tokens": self.max_tokens,
            "digest": digest.hexdigest()[:16],
        }


def from_rows(
    found: Found, style: str | None, grader: str | None, max_tokens: int | None, limit: int | None
) -> Questions:
    """A benchmark or a file, in this prompt style. Rows that hold chat messages keep them."""
    style, grader = style or STYLE, grader or GRADER
    render(style, "", "--prompt")
    if grader not in GRADERS:
        raise InvalidValue("--grader", grader, f"one of {', '.join(GRADERS)}")
    problems = []
    for row in found.rows[:limit]:
        shown = Rendered(row.text, row.messages) if row.messages else render(style, row.text)
        data = {"prompt": row.text, "answer": row.answer, "columns": row.columns}
        problems.append(Problem(row.id, shown.text, data, shown.messages))
    judge = _by(Graded(GRADERS[grader]()))
    return Questions(
        found.name, found.source, tuple(problems), judge, EXTRACTORS[grader], max_tokens or MAX_TOKENS, style, grader
    )


def from_task(name: str, task: Task, count: int, max_tokens: int | None) -> Questions:
    """A task's own evaluation problems, prompts and verifier."""
    problems = tuple(task.eval_problems(count))
    verifier = task.verifier if isinstance(task, Data) else None
    grader = verifier.grader.name if isinstance(verifier, Graded) else None
    answer = whole if grader is None else EXTRACTORS[grader]
    own = "the task's own"
    limit = max_tokens or task.max_tokens
    return Questions(name, repr(task), problems, task.judge, answer, limit, getattr(task, "style", own), grader or own)


def _by(verifier: Verifier) -> Judge:
    def judge(
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
    ) -> list[Verdict]:
        ids = tokens if tokens is not None else [()] * len(texts)
        items = zip(problems, texts, ids, strict=True)
        return verifier.judge([Answered(p["prompt"], text, p["answer"], p["columns"], own) for p, text, own in items])

    return judge
