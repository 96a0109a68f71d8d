"""What every task offers: prompts without end, a fixed set for evaluation, and a verifier."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aepo.tasks.rewards import Verdict


@dataclass(frozen=True)
class Problem:
    """One problem as text, with what its verifier needs. messages: chat turns (role, content) for a chat template."""

    id: str
    text: str
    data: Mapping[str, Any] = field(hash=False)
    messages: tuple[tuple[str, str], ...] = ()


class Task(ABC):
    """A source of verifiable problems. Everything here is a function of its arguments: nothing is remembered."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """The longest completion that is sampled, end-of-sequence token included."""

    @abstractmethod
    def train_problem(self, seed: int, index: int) -> Problem:
        """Problem number `index` of the endless training stream that `seed` orders."""

    @abstractmethod
    def eval_problems(self, count: int) -> list[Problem]:
        """The first `count` problems of the fixed evaluation set, disjoint from every training stream."""

    @abstractmethod
    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Score a completion's text against `Problem.data`: 1.0 if it is right, else 0.0."""

    def judge(
        self, problems: Sequence[Mapping[str, Any]], texts: Sequence[str], truncated: Sequence[bool]
    ) -> list[Verdict]:
        """A verdict for each completion; NaN and failed where `reward` raised or gave no number."""
        rewards = [safe_reward(self, *item) for item in zip(problems, texts, truncated, strict=True)]
        return [Verdict(value, failed=not math.isfinite(value)) for value in rewards]

    def fitted(self, length: Callable[[Problem], int]) -> Task:
        """This task, checked against what is known before the run starts; length: tokens of a problem's prompt."""
        return self

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """A right completion's text for `Problem.data`, where the task knows one; else None."""
        return None


def safe_reward(task: Task, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
    """The verifier's score; NaN when it raised, so that callers count the failure instead of ending."""
    try:
        return float(task.reward(problem, text, truncated))
    except Exception:
        return math.nan
