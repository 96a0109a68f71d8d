"""A grader without algebra: it compares texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from aepo.grading.base import Grade, Grader
from aepo.grading.text import accepted, clean, last_boxed, printable, squeeze


@dataclass(frozen=True)
class ExactGrader(Grader):
    r"""`ExactGrader` accepts a completion whose last box, or without a box whose whole text, spells the answer.

    Both are brought to one spelling first: dollar signs, \left and \right, spaces, \text{} and its kin and a full stop
    at the end go; \dfrac and \tfrac are \frac. Case counts, and 0.5 is not 1/2.
    """

    name: ClassVar[str] = "exact"

    def grade(self, completion: str, answer: str) -> Grade:
        """Compare the spelling of the given answer with that of each accepted answer."""
        box = last_boxed(printable(completion))
        given = squeeze(clean(completion if box is None else box))
        right = bool(given) and given in [squeeze(clean(printable(text))) for text in accepted(answer)]
        return Grade(right, "the same text" if right else f"not the same: {printable(given[:80])}")
