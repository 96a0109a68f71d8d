"""The default grader: it compares mathematical values strictly."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from aepo.grading import symbolic
from aepo.grading.base import Grade, Grader
from aepo.grading.boxes import boxed_answers
from aepo.grading.equal import same_answer, same_formula
from aepo.grading.spelling import standard, units
from aepo.grading.text import accepted, clean, exact_number, printable, squeeze

# A given answer is not read if it is longer than _ROOM characters and _TIMES the known ones, has more than _DEEPEST
# brackets, or stacks more than _HIGHEST exponents: no form of a known answer needs that.
_ROOM, _TIMES, _DEEPEST, _HIGHEST = 2000, 10, 60, 2


@dataclass(frozen=True)
class MathGrader(Grader):
    """`MathGrader` accepts an answer that equals the known one as exact mathematics.

    >>> MathGrader().grade(r"... \\boxed{\\frac{2}{4}}", "0.5").correct
    True
    """

    name: ClassVar[str] = "math"
    boxed: bool = True
    """Read the answer from the last box, so that a completion without a box is wrong; false looks in the whole text."""
    rounded: bool = False
    """Accept also a number that rounds to the known one if that is a decimal: 1/3 for 0.33. Benchmarks with rounded
    answers (Minerva Math) need it; without it 1/3 is not 0.33."""

    def prepare(self) -> None:
        """Import math-verify and build its parser.

        Raises:
            InvalidValue: math-verify is not installed.
        """
        symbolic.same_formula(symbolic.parsed("x + 1"), symbolic.parsed("1 + x"))

    def grade(self, completion: str, answer: str) -> Grade:
        """Grade a completion by exact value.

        A decimal equals a fraction only if their values are the same. 50% is 50, like 50 cm. The order of a list of
        roots does not matter.
        """
        completion = printable(completion)
        spelled = [printable(text) for text in accepted(answer)]
        golds = [clean(text) for text in spelled]
        if not any(golds):
            return Grade(False, "the known answer is empty")
        if not self.boxed:
            return _found_anywhere(completion, [standard(gold) for gold in golds])
        boxes = boxed_answers(completion)
        if not any(boxes or []):
            return Grade(False, "no boxed answer" if boxes is None else "an empty box")
        assert boxes is not None
        written = ", ".join(boxes)
        given = clean(written)
        if any(squeeze(gold) == squeeze(given) for gold in golds):
            return Grade(True, "the same text")
        if too_large(given, golds):
            return Grade(False, "an answer too long or too deeply nested to be this one")
        right = any(self._same(gold, written) for gold in spelled)
        if not right and len(boxes) > 1:  # One value, written in several ways.
            right = any(all(self._same(gold, box) for box in boxes) for gold in spelled)
        shown = given if len(given) <= 80 else given[:77] + "..."
        return Grade(right, "the same value" if right else f"not the same: {shown}")

    def _same(self, gold: str, given: str) -> bool:
        known, offered = units(gold), units(given)
        if known and offered and known != offered:
            return False
        gold, given = standard(gold), standard(given)
        return same_answer(gold, given) or (self.rounded and _rounds_to(gold, given))


def _rounds_to(gold: str, given: str) -> bool:
    """Return whether the known answer is a decimal, and the given number differs by half of its last digit at most."""
    match = re.match(r"[-+]?\d*\.(\d+)", gold)
    known = exact_number(gold)
    if match is None or known is None:
        return False
    written = Fraction(match[0])
    half = Fraction(1, 2 * 10 ** len(match[1])) * (known / written if written else 1)
    value = symbolic.value(given)
    return value is not None and abs(value - known) <= half


def too_large(given: str, golds: list[str]) -> bool:
    """Return whether the given answer is too large to read: too long, too deeply nested, or a tower of powers.

    Args:
        given: The given answer.
        golds: The known answers; larger ones allow a larger given answer.
    """
    longest = max(map(len, golds))
    opened = max(given.count(bracket) for bracket in "([{")
    if len(given) > max(_ROOM, _TIMES * longest) or opened > max(_DEEPEST, 2 * longest):
        return True
    return _storeys(given) > max(_HIGHEST, *map(_storeys, golds))


def _storeys(text: str) -> int:
    """Return how many exponents are stacked: 1 for x^2, 3 for x^{y^{z^2}}."""
    highest, height = 0, 0
    braces: list[bool] = []
    for token in re.findall(r"\^\s*\{|[\^{}]", re.sub(r"\\.", "", text)):
        if token == "}":
            height -= bool(braces and braces.pop())
        elif token == "^":
            highest = max(highest, height + 1)
        else:
            braces.append(token != "{")
            height += token != "{"
        highest = max(highest, height)
    return highest


def _found_anywhere(completion: str, golds: list[str]) -> Grade:
    """Grade the answer that math-verify finds in the whole text."""
    found = symbolic.library().parse(completion, parsing_timeout=None, fallback_mode="no_fallback")
    if not found:
        return Grade(False, "no answer found")
    given, text = symbolic.exact(found[0]), standard(str(found[-1]))
    if symbolic.is_percent(found[0]):
        # math-verify takes 1800% for 18; the number before the sign is compared.
        right = any(same_answer(gold, rf"{100 * given}\%") for gold in golds)
    else:
        right = any(same_answer(gold, text) or same_formula(gold, given) for gold in golds)
    return Grade(right, "the same value" if right else f"not the same: {str(given)[:80]}")
