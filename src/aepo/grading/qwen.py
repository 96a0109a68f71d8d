"""A grader with the verdicts of Qwen2.5-Math's evaluation, for comparison with numbers that were published with it.

The rules are lenient: a relative error of 1e-4 passes, a factor of 100 (percent) passes, and brackets do not count.
Differences from the original program are listed in docs/grading.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from aepo.grading.base import Grade, Grader
from aepo.grading.math import too_large
from aepo.grading.qwen_equal import check_parser, equal
from aepo.grading.qwen_text import chosen, extracted, normalised
from aepo.grading.text import accepted, printable

_LETTERS = frozenset("ABCDE")


@dataclass(frozen=True)
class QwenGrader(Grader):
    """`QwenGrader` gives the verdicts of Qwen2.5-Math's evaluation.

    >>> QwenGrader().grade("The answer is 50%.", "0.5").correct
    True
    """

    name: ClassVar[str] = "qwen"
    choices: bool = False
    """The questions are multiple choice, and the answer is a letter from A to E."""
    units: bool = False
    """Keep units in answers, as that program does for Minerva Math."""
    from_solution: bool = False
    """Even out the known answer twice, as that program does for MATH, where it takes it from the worked solution."""

    def prepare(self) -> None:
        """Import sympy and its parsers.

        Raises:
            InvalidValue: A parser is not installed.
        """
        check_parser()

    def grade(self, completion: str, answer: str) -> Grade:
        """Extract the answer, bring it to one spelling, and compare it with each accepted answer."""
        completion = printable(completion)
        golds = [known_answer(printable(text), self.units) for text in accepted(answer)]
        golds = [normalised(gold, self.units) for gold in golds] if self.from_solution else golds
        given = normalised(normalised(extracted(completion, self.choices), self.units), self.units)
        if too_large(given, golds):
            return Grade(any(given == gold for gold in golds), "the text alone compared: too long or deeply nested")
        right = any(equal(_letters(given, completion, gold), gold) for gold in golds)
        if not right and not given:
            return Grade(False, "no answer found")
        return Grade(right, "equal" if right else f"not equal: {given[:80]}")


def known_answer(text: str, units: bool = False) -> str:
    """Return a benchmark's answer in the spelling that is compared.

    A text with dollar signs around formulas (College Math, OlympiadBench) loses all of them first, escaped ones too.
    """
    if re.search(r"(?<!\\)\$", text):
        text = text.replace("$", "")
    return normalised(text, units)


def _letters(given: str, completion: str, gold: str) -> str:
    """Return the given answer, for a known answer of letters from A to E as letters alone."""
    if gold in _LETTERS and given not in _LETTERS:
        return chosen(completion.strip())
    if set(gold) <= _LETTERS and not set(given) <= _LETTERS:
        return "".join(letter for letter in given if letter in _LETTERS)
    return given
