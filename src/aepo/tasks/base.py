"""The interface of a task: endless prompts for training, a fixed set for evaluation, and a verifier."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from aepo.engines.right import RightRule
from aepo.tasks.images import Image
from aepo.tasks.rewards import Begun, Verdict


@dataclass(frozen=True)
class Problem:
    """`Problem` is a problem as text, with the data that its verifier needs."""

    id: str
    """Name of the problem, unique in its task."""
    text: str
    """The prompt."""
    data: Mapping[str, Any] = field(hash=False)
    """What the verifier needs to know of the problem."""
    messages: tuple[tuple[str, str], ...] = ()
    """Chat turns (role, content) for a chat template; empty for a prompt that is plain text."""
    template_kwargs: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Arguments of the chat template, such as Qwen3's `enable_thinking`."""
    where: str = field(default="", compare=False)
    """The file and the line that the problem is from, for messages; empty for a problem that was made."""
    images: tuple[Image, ...] = ()
    """The images, in the order of the marks `<image>` in the prompt."""


class Task(ABC):
    """`Task` is a source of verifiable problems. Its methods are functions of their arguments: it remembers nothing."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Return the largest length of a sampled completion, tokens, with the end-of-sequence token."""

    @abstractmethod
    def train_problem(self, seed: int, index: int) -> Problem:
        """Return problem number `index` of the endless training stream of this seed."""

    @abstractmethod
    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` problems of the fixed evaluation set, which shares no problem with training."""

    @abstractmethod
    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Score the text of a completion: 1.0 if it is right, else 0.0.

        Args:
            problem: The `Problem.data` of the problem.
            text: The text of the completion.
            truncated: Whether the completion was cut at the limit.
        """

    def judge(
        self,
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> list[Verdict]:
        """Return a verdict for each completion; it is NaN and failed if `reward` raised or gave no finite number.

        Args:
            problems: The `Problem.data` of each completion's problem.
            texts: The text of each completion.
            truncated: Whether each completion was cut at the limit.
            tokens: The completions' token ids, for a task whose verifier counts them.
            place: The number of finished steps and the number of all steps of the run; (0, 0) outside a run.
        """
        rewards = [safe_reward(self, *item) for item in zip(problems, texts, truncated, strict=True)]
        return [Verdict(value, failed=not math.isfinite(value)) for value in rewards]

    @property
    def background(self) -> bool:
        """Return whether `start` judges while the caller goes on, and a verdict depends on its own completion alone."""
        return False

    def start(
        self,
        problems: Sequence[Mapping[str, Any]],
        texts: Sequence[str],
        truncated: Sequence[bool],
        tokens: Sequence[tuple[int, ...]] | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> Begun:
        """Begin to judge completions; without `background`, they are judged all at once when the caller waits.

        The arguments are those of `judge`.
        """
        return Begun(partial(self.judge, problems, texts, truncated, tokens, place))

    def known_answer(self, problem: Mapping[str, Any]) -> str | None:
        """Return the known answer for this `Problem.data`, to show beside a completion; None if there is none."""
        found = problem.get("answer")
        return None if found is None else str(found)

    @property
    def right_rule(self) -> RightRule:
        """Return the rule that decides which completions count as right."""
        return RightRule()

    @property
    def special_tokens(self) -> bool:
        """Return whether the texts of completions keep the special tokens inside them."""
        return True

    def facts(self) -> dict[str, Any]:
        """Return what a person should know of the task's data before a run, by name: numbers of rows, and the like."""
        return {}

    def fingerprint(self) -> str:
        """Return a digest of the task's data. A run is resumed only on data with the same digest.

        The built-in tasks make their problems from the settings, so theirs is empty.
        """
        return ""

    def located(self) -> Task:
        """Return the task with absolute paths, so that a run can be resumed from another folder."""
        return self

    def check(self) -> None:
        """Check what needs no model, before one is loaded, such as that reward functions can be imported.

        Raises:
            InvalidValue: Something cannot be used.
        """
        return

    def fitted(self, length: Callable[[Problem], int]) -> Task:
        """Check the task against what is known before the run starts, and return the task that the run uses.

        Args:
            length: A function that returns the length of a problem's prompt, tokens.
        """
        return self

    def template(self) -> str | None:
        """Return the text of the chat template that replaces the model's own, or None."""
        return None

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return the text of a right completion for this `Problem.data`, or None if the task knows none."""
        return None


def safe_reward(task: Task, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
    """Return the verifier's score, or NaN if it raised, so that the caller counts a failure and continues."""
    try:
        return float(task.reward(problem, text, truncated))
    except Exception:
        return math.nan
