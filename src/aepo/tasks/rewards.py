"""Verifiers: what judges completions, what it gets and what it returns, and the verifier that grades known answers."""

from __future__ import annotations

import importlib
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

from aepo.errors import InvalidValue, require
from aepo.grading.base import Grader
from aepo.grading.exact import ExactGrader
from aepo.grading.math import MathGrader
from aepo.grading.pool import GradingPool


@dataclass(frozen=True)
class Answered:
    """`Answered` is a completion to be judged."""

    prompt: str
    """Text of the prompt."""
    completion: str
    """Text of the completion."""
    answer: str
    """The known answer."""
    columns: Mapping[str, Any]
    """The columns of the row."""
    tokens: tuple[int, ...] = ()
    """The completion's token ids, end-of-sequence included; empty if the caller has none."""
    messages: tuple[tuple[str, str], ...] = ()
    """The prompt's chat turns (role, content); empty for a prompt that is plain text."""
    place: tuple[int, int] = (0, 0)
    """The number of finished steps and the number of all steps of the run; (0, 0) outside a run."""


@dataclass(frozen=True)
class Verdict:
    """`Verdict` is the result of judging one completion."""

    reward: float
    """The reward; NaN where there is none."""
    failed: bool = False
    """Whether the judge hung or crashed; such verdicts are counted and logged."""
    reason: str = ""
    """Why, in a few words."""
    right: bool | None = None
    """What the judge itself says of right or wrong; None if it gives a reward only."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """The reward of each function by name, before the weights, if there are several; NaN where one gave none."""
    logged: Mapping[str, Any] = field(default_factory=dict)
    """What the function logs of this completion, by name (TRL's `log_extra`)."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """What the function logs of its whole call, by name (TRL's `log_metric`)."""


@dataclass(frozen=True)
class Begun:
    """`Begun` is a judging that has begun."""

    wait: Callable[[], list[Verdict]]
    """A function that waits for the verdicts and returns them in order."""
    stop: Callable[[], None] = lambda: None
    """A function that stops what still runs; nobody waits then."""


class Verifier(ABC):
    """`Verifier` judges many completions at once."""

    name: ClassVar[str]

    @property
    def special_tokens(self) -> bool:
        """Return whether the texts that it judges keep the special tokens inside a completion."""
        return True

    @abstractmethod
    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Return a verdict for each completion, in order. It never raises because of what a completion says."""

    @property
    def background(self) -> bool:
        """Return whether `start` judges while the caller goes on, and a verdict depends on its own completion alone."""
        return False

    def start(self, items: Sequence[Answered]) -> Begun:
        """Begin to judge completions; without `background`, they are judged all at once when the caller waits."""
        return Begun(partial(self.judge, items))

    def check(self) -> None:  # noqa: B027
        """Check the settings before any work starts.

        Raises:
            InvalidValue: A setting cannot work.
        """


@dataclass(frozen=True)
class Graded(Verifier):
    """`Graded` gives 1.0 if the grader says right, else 0.0.

    A grade that hangs or crashes is 0.0 and counts as failed.
    """

    name: ClassVar[str] = "graded"
    grader: Grader = MathGrader()
    """The rule that compares a completion with the known answer."""
    seconds: float = 5.0
    """Wall-clock limit of one grade, in seconds."""
    processes: int | None = None
    """Worker processes that grade and can be killed; none for one per core."""

    def __post_init__(self) -> None:
        require(self.seconds > 0, "verifier.seconds", self.seconds, "a positive number of seconds")
        ok = self.processes is None or self.processes >= 1
        require(ok, "verifier.processes", self.processes, "at least 1, or none for one per core")

    def check(self) -> None:
        """Check that the packages that the grader needs are installed."""
        if not isinstance(self.grader, ExactGrader) and importlib.util.find_spec("math_verify") is None:
            raise InvalidValue(
                "verifier.grader", self.grader.name, "exact, or with `pip install 'aepo[math]'` math or qwen"
            )

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Grade all completions in the pool."""
        grades = self._pool.grade([(item.completion, item.answer) for item in items])
        return [Verdict(float(grade.correct), grade.failed, grade.reason, grade.correct) for grade in grades]

    @cached_property
    def _pool(self) -> GradingPool:
        return GradingPool(self.grader, self.processes or os.cpu_count() or 1, self.seconds)
