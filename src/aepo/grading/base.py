"""The interface of a grader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Grade:
    """`Grade` is a verdict and its reason."""

    correct: bool
    """Whether the completion is right."""
    reason: str
    """Why, in a few words."""
    failed: bool = False
    """Whether no verdict was reached because the grader itself hung or crashed; then `correct` is false."""


class Grader(ABC):
    """`Grader` is a rule that compares a completion with the known answer.

    Subclasses are frozen dataclasses of plain settings: two equal graders give equal grades, and a grader can be sent
    to another process. `grade` may take arbitrarily long on hostile text; `GradingPool` limits its time.
    """

    name: ClassVar[str]

    def prepare(self) -> None:
        """Load what grading needs. A pool calls this in each process before any time limit starts."""
        return

    @abstractmethod
    def grade(self, completion: str, answer: str) -> Grade:
        """Grade a completion.

        Args:
            completion: The whole text of the completion.
            answer: The known answer, as the benchmark's file spells it.
        """
