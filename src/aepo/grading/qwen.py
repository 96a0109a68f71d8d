"""A grader with the rules of Qwen2.5-Math's evaluation, for comparison with numbers that were published with it.

The rules are lenient: a relative error of 1e-4 passes, a factor of 100 (percent) passes, and brackets do not count.
This module was written from a description of that program (docs/grading.md), not from its source, so single grades may
differ.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from aepo.grading import symbolic
from aepo.grading.base import Grade, Grader
from aepo.grading.math import too_large
from aepo.grading.text import accepted, bracketed, clean, items, printable, unwrap

_TOLERANCE = 1e-4
_CHOICE = re.compile(r"\b([A-E])\b")
_MINERVA = re.compile(r"final answer is \$(.*?)\$\. I hope", re.DOTALL)
_CUES = ("he answer is", "final answer is", "\u7b54\u6848\u662f")
_NUMBER = re.compile(r"-?\d*\.?\d+")
_UNITS = re.compile(
    r"(?i)(?<=[\d}\s])\s*(?:degrees?|dollars?|cents?|units?|points?|miles?|mph|feet|ft|inch(?:es)?|meters?|cm|mm|km|kg|"
    r"grams?|lbs?|pounds?|gallons?|lit(?:er|re)s?|hours?|hrs?|minutes?|seconds?|days?|weeks?|months?|years?|people|"
    r"students?|square|cubic)(?:\^\{?\d\}?)?\.?$"
)
_TENS = {"zero": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_WORDS = {**_TENS, "ten": 10, "eleven": 11, "twelve": 12, "twenty": 20, "fifty": 50, "hundred": 100}
_MATRIX = re.compile(r"\\begin\{([bp]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_LIST = re.compile(r"[(\[].+[)\]]", re.DOTALL)


@dataclass(frozen=True)
class QwenGrader(Grader):
    """`QwenGrader` compares by the rules of Qwen2.5-Math's evaluation.

    >>> QwenGrader().grade("The answer is 50%.", "0.5").correct
    True
    """

    name: ClassVar[str] = "qwen"
    choices: bool = False
    """The questions are multiple choice, and the answer is the last letter from A to E that stands alone."""
    units: bool = False
    """Keep units in answers, as that program does for Minerva Math."""

    def prepare(self) -> None:
        """Import math-verify, which reads the formulas.

        Raises:
            InvalidValue: math-verify is not installed.
        """
        symbolic.parsed("x + 1")

    def grade(self, completion: str, answer: str) -> Grade:
        """Extract the answer, normalise it, and compare it with each accepted answer."""
        given = normalised(extracted(printable(completion), self.choices), self.units)
        golds = [normalised(printable(text), self.units) for text in accepted(answer)]
        if not given:
            return Grade(False, "no answer found")
        if too_large(given, golds):
            return Grade(any(given == gold for gold in golds), "the text alone compared: too long or deeply nested")
        right = any(lenient_equal(gold, given) for gold in golds)
        return Grade(right, "equal" if right else f"not equal: {given[:80]}")


def extracted(completion: str, choices: bool = False) -> str:
    """Return the answer in a completion by the first rule that finds one; empty if none does.

    Args:
        completion: The whole text.
        choices: Take the last letter from A to E that stands alone.
    """
    if choices:
        letters = _CHOICE.findall(completion)
        return letters[-1] if letters else completion.strip().strip(".")
    if found := _MINERVA.search(completion):
        text = found[1]
    elif "boxed" in completion:
        text = _after_boxed(completion.rsplit("boxed", 1)[1])
    elif cue := next((cue for cue in _CUES if cue in completion), None):
        text = completion.rsplit(cue, 1)[1]
    else:
        numbers = _NUMBER.findall(completion.replace(",", ""))
        text = numbers[-1] if numbers else ""
    return re.sub(r"\n\s*", "", text).strip().lstrip(": ").rstrip("./")


def _after_boxed(text: str) -> str:
    """Return the contents of the braces, or all the rest if they are not closed; without braces, up to a dollar."""
    if not text.startswith("{"):
        return text.split("$", 1)[0]
    depth = 0
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match.group() == "{" else -1
        if depth == 0:
            return text[1 : match.start()]
    return text[1:]


def normalised(text: str, units: bool = False) -> str:
    """Return one spelling of an answer.

    LaTeX spacing and dollar, degree and percent signs are removed, and words for numbers become digits.

    Args:
        text: The answer.
        units: Keep a unit at the end.
    """
    text = clean(re.sub(r"\n\s*", "", text)).rstrip("./")
    text = re.sub(r"\^\{?\s*\\circ\s*\}?", "", text)
    plain = unwrap(text).strip()
    if not units:
        plain = _UNITS.sub("", re.sub(r"(?<=\d)\s*\\text\{.*$", "", plain)).strip() or plain
    if plain.casefold() in _WORDS:
        return str(_WORDS[plain.casefold()])
    plain = plain.replace(r"\%", "").replace("%", "").replace("infinity", r"\infty")
    plain = re.sub(r"(?<![\d.])\.(\d)", r"0.\1", plain)
    plain = re.sub(r"\\sqrt\s*(\w)", r"\\sqrt{\1}", plain)
    plain = re.sub(r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}", plain)
    plain = re.sub(r"(?<![\d/])(-?\d+)/(\d+)(?![\d/])$", r"\\frac{\1}{\2}", plain) if "frac" not in plain else plain
    plain = re.sub(r"(\d+\.\d*?)0+$", r"\1", plain).rstrip(".")
    name, equals, value = plain.partition("=")
    return (value if equals and len(name.strip()) <= 2 and "=" not in value else plain).strip()


def lenient_equal(gold: str, given: str) -> bool:
    """Return whether two normalised answers count as equal."""
    if _flat(gold).casefold() == _flat(given).casefold():
        return True
    known, value = _float(gold), _float(given)
    if known is not None and value is not None:
        return any(math.isclose(known * factor, value, rel_tol=_TOLERANCE) for factor in (0.01, 1.0, 100.0))
    if not given:
        return False
    if _unbracketed(gold) == _unbracketed(given):
        return True
    rows = _matrix(gold), _matrix(given)
    if rows[0] is not None and rows[1] is not None:
        return _each(rows[0], rows[1])
    if _LIST.fullmatch(gold) and _LIST.fullmatch(given) and bracketed(gold) and bracketed(given):
        return _each(items(gold[1:-1]), items(given[1:-1]))
    return _as_equations(gold, given)


def _each(golds: list[str], givens: list[str]) -> bool:
    return len(golds) == len(givens) and all(map(lenient_equal, golds, givens))


def _as_equations(gold: str, given: str) -> bool:
    left, right = gold.split("="), given.split("=")
    if len(left) == 2 and len(right) == 2:
        return _same(gold, given, _sides_equal)
    if len(left) == 2 and len(left[0].strip()) <= 2 and len(right) == 1:
        return lenient_equal(left[1].strip(), given)
    if len(right) == 2 and len(right[0].strip()) <= 2 and len(left) == 1:
        return lenient_equal(gold, right[1].strip())
    return _same(gold, given, _formulas_equal)


def _same(gold: str, given: str, equal: Callable[[Any, Any], bool]) -> bool:
    left, right = symbolic.parsed(gold), symbolic.parsed(given)
    if left is None or right is None:
        return False
    try:
        return equal(left, right)
    except (TypeError, ValueError, AttributeError, NotImplementedError, ArithmeticError):
        return False  # The two kinds of object cannot be subtracted, or a value is no number.


def _sides_equal(gold: Any, given: Any) -> bool:
    known, offered = gold.lhs - gold.rhs, given.lhs - given.rhs
    return _formulas_equal(known, offered) or _formulas_equal(known, -offered)


def _formulas_equal(gold: Any, given: Any) -> bool:
    import sympy

    if gold == given or sympy.simplify(gold - given) == 0:
        return True
    numbers = gold.is_number and given.is_number
    return bool(numbers) and math.isclose(float(sympy.N(gold)), float(sympy.N(given)), rel_tol=_TOLERANCE)


def _float(text: str) -> float | None:
    try:
        value = float(text.replace(",", "")) if len(text) <= 400 else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _flat(text: str) -> str:
    return re.sub(r"\s+", "", text)


def _unbracketed(text: str) -> str:
    return re.sub(r"[\s{}()\[\]]|\\[{}]", "", text).casefold()


def _matrix(text: str) -> list[str] | None:
    found = _MATRIX.fullmatch(text)
    return None if found is None else [cell.strip() for cell in re.split(r"\\\\|&", found[2]) if cell.strip()]
