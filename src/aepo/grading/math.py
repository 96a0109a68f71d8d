"""The default grader: it compares mathematical values strictly.

This module compares brackets, commas, unions and plus-minus signs itself; math-verify compares what stands between
them. So the grade of a flipped bracket, a missing root or a swapped coordinate never depends on the parser.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from aepo.grading import symbolic
from aepo.grading.base import Grade, Grader
from aepo.grading.text import (
    accepted,
    bracketed,
    clean,
    exact_number,
    items,
    last_boxed,
    printable,
    squeeze,
    unwrap,
    without_units,
)

_NAME = r"\\?[A-Za-z]+'*(?:\s*_\s*(?:\w|\{[^{}]*\}))?(?:\s*\([A-Za-z](?:\s*,\s*[A-Za-z])*\))?"
_VALUED = r"\\(?:sin|cos|tan|cot|sec|csc|ln|log|exp|arc|pi)|e$"
_ASSIGNED = re.compile(rf"({_NAME})\s*(?:=|\\in(?![A-Za-z]))\s*(.+)", re.DOTALL)
_EQUALS = re.compile(r"(?<![<>!\\])=")
_RELATION = re.compile(r"[=<>]|\\(?:n?[lg]eq?(?:slant)?|neq?|approx|in)(?![A-Za-z])")
_AND = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_APPROX = re.compile(r"\\approx(?![A-Za-z])")
_PLUS_MINUS = re.compile(r"\\(pm|mp)(?![A-Za-z])")
_COMMAND = re.compile(r"\\(?:(?:begin|end)\s*\{[^{}]*\}|[A-Za-z]+)")
_PROSE = re.compile(
    r"(?i)(?<![A-Za-z])(?=[a-z]*[aeiou])(?!sqrt|arc|infinity|mod(?![a-z])|min(?![a-z])|max(?![a-z]))[a-z]{4,}"
)
_WORD = re.compile(r"(?i)\(?(?=[a-z' -]*[aeiou])[a-z][a-z' -]{2,}\)?")
_CHOICE = re.compile(r"\\text\{\(?([A-Z])\)?\}|\(([A-Z])\)")
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

    def prepare(self) -> None:
        """Import math-verify and build its parser.

        Raises:
            InvalidValue: math-verify is not installed.
        """
        symbolic.same_formula(symbolic.parsed("x + 1"), symbolic.parsed("1 + x"))

    def grade(self, completion: str, answer: str) -> Grade:
        """Grade a completion by exact value.

        A decimal equals a fraction only if their values are the same. 50% is 0.5 and not 50. The order of a list of
        roots does not matter.
        """
        completion = printable(completion)
        golds = [clean(printable(text)) for text in accepted(answer)]
        if not any(golds):
            return Grade(False, "the known answer is empty")
        if not self.boxed:
            return _found_anywhere(completion, golds)
        box = last_boxed(completion)
        if box is None or not box.strip():
            return Grade(False, "no boxed answer" if box is None else "an empty box")
        given = clean(box)
        if any(squeeze(gold) == squeeze(given) for gold in golds):
            return Grade(True, "the same text")
        if too_large(given, golds):
            return Grade(False, "an answer too long or too deeply nested to be this one")
        right = any(same_answer(gold, given) for gold in golds)
        shown = given if len(given) <= 80 else given[:77] + "..."
        return Grade(right, "the same value" if right else f"not the same: {shown}")


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


def same_answer(gold: str, given: str) -> bool:
    """Return whether two cleaned answers have the same value."""
    if squeeze(gold) == squeeze(given):
        return True
    if choice := _CHOICE.fullmatch(gold):
        letter = re.fullmatch(r"\(?([A-Z])\)?", unwrap(given))
        return letter is not None and letter[1] == (choice[1] or choice[2])
    number, value = exact_number(gold), exact_number(given)
    if number is not None and value is not None:
        return number == value
    if number is None and (words := _words(gold)) is not None:
        return words == _words(given)
    golds, givens = (_listed(gold) if number is None else [gold]), (_listed(given) if value is None else [given])
    if len(golds) > 1 or len(givens) > 1:
        return _matched(golds, givens)
    if r"\approx" in gold or r"\approx" in given:
        return _same_approximation(_APPROX.split(gold), _APPROX.split(given))
    structure, other = _structure(gold), _structure(given)
    if structure is not None or other is not None:
        return structure is not None and other is not None and _same_structure(structure, other)
    return _same_formula(gold, given)


def _words(text: str) -> str | None:
    """Return one spelling of a text that consists of words, or None if the text is a formula."""
    plain = " ".join(unwrap(text).split())
    bare = _COMMAND.sub(" ", plain)
    if _WORD.fullmatch(plain) or _PROSE.search(bare):
        return plain.strip("()").casefold()
    return None


def _listed(text: str) -> list[str]:
    r"""Return the answers in a list: 1, 2; {1, 2}; x = 1 or x = 2; 1 \pm 2. A single answer gives a list of one."""
    inside = bracketed(text)
    if inside is not None and inside[0] == r"\{":
        text = inside[1]
    found = [part for part in items(_AND.sub(",", text)) if part]
    if len(found) == 1 and (assigned := _assigned(found[0])) is not None and bracketed(assigned[1]):
        return found
    return [each for part in found for each in _both_signs(part)]


def _both_signs(text: str) -> list[str]:
    r"""Return the two texts that \pm and \mp stand for, or the text alone if it has neither."""
    if not _PLUS_MINUS.search(text):
        return [text]
    signs = ({"pm": "+", "mp": "-"}, {"pm": "-", "mp": "+"})
    return [_PLUS_MINUS.sub(lambda match, sign=sign: sign[match[1]], text) for sign in signs]  # type: ignore[misc]


def _matched(golds: list[str], givens: list[str]) -> bool:
    """Return whether known and given answers pair up. Equality is transitive, so the first match is enough."""
    left = list(givens)
    if len(golds) != len(givens):
        return False
    for gold in golds:
        fit = next((given for given in left if same_answer(gold, given)), None)
        if fit is None:
            return False
        left.remove(fit)
    return True


def _assigned(text: str) -> tuple[str, str] | None:
    r"""Return (name, value) of `x = 5`, `f(x) = 2x`, `x \in [0, 1]`; None if the text has another form."""
    match = _ASSIGNED.fullmatch(text)
    if match is None or _RELATION.search(match[2]):
        return None
    return squeeze(match[1]), match[2].strip()


def _structure(text: str) -> tuple[str, list[str], str] | None:
    """Return (opening bracket, parts, closing bracket) of a tuple or interval, ("", parts, "") of a union, or None."""
    assigned = _assigned(text)
    text = assigned[1] if assigned and (bracketed(assigned[1]) or r"\cup" in assigned[1]) else text
    pieces = items(text, (r"\cup",))
    if len(pieces) > 1:
        return "", pieces, ""
    found = bracketed(text)
    if found is None or len(parts := items(found[1], (",",))) < 2:
        return None
    return found[0], parts, found[2]


def _same_structure(gold: tuple[str, list[str], str], given: tuple[str, list[str], str]) -> bool:
    if (gold[0], gold[2]) != (given[0], given[2]):
        return False
    if gold[0] == "":
        return _matched(gold[1], given[1])
    return len(gold[1]) == len(given[1]) and all(map(same_answer, gold[1], given[1]))


def _same_formula(gold: str, given: str) -> bool:
    known, offered = _assigned(gold), _assigned(given)
    if (known and offered and known[0] == offered[0]) or (known and not _RELATION.search(given)):
        return same_answer(known[1], offered[1] if offered else given)
    if offered and not _RELATION.search(gold):
        return same_answer(gold, offered[1])
    if not _RELATION.search(gold) and _EQUALS.search(given):
        return _same_chain(gold, [part.strip() for part in _EQUALS.split(given)])
    left, right = (symbolic.parsed(_readable(text)) for text in (gold, given))
    return left is not None and right is not None and symbolic.same_formula(left, right)


def _same_chain(gold: str, parts: list[str]) -> bool:
    """Return whether each part of `A = 2 + 3 = 5` but a leading name has the known value, so that `1 = 5` is not 5."""
    values = parts[1:] if re.fullmatch(_NAME, parts[0]) else parts
    return all(part and same_answer(gold, part) for part in values)


def _same_approximation(golds: list[str], givens: list[str]) -> bool:
    r"""Return whether approximations agree.

    Of a given `A \approx B`, A counts. If the known answer is `A \approx B`, A and B are both accepted; if both answers
    are, their first and last parts must agree.
    """
    known, offered = ([part.strip() for part in parts if not _is_name(part)] for parts in (golds, givens))
    if not known or not offered:
        return False
    if len(known) > 1 and len(offered) > 1:
        return same_answer(known[0], offered[0]) and same_answer(known[-1], offered[-1])
    return any(same_answer(each, offered[0]) for each in known)


def _is_name(text: str) -> bool:
    """Return whether the text is empty or a variable; functions, pi and e have values and are no variables."""
    return not text.strip() or re.fullmatch(rf"(?!{_VALUED}){_NAME}", text.strip()) is not None


def _readable(text: str) -> str:
    """Rewrite what math-verify would misread: 4.5e33, `-1./3`, np.arcsin, a unit at the end."""
    text = without_units(text)
    text = re.sub(r"(?<![\w.\\])(\d+(?:\.\d*)?)[eE]([+-]?\d+)(?![\w.])", r"\1 \\times 10^{\2}", text)
    text = re.sub(r"(\d)\.(?!\d)", r"\1", text)
    return re.sub(r"np\.(?=[a-z])", r"\\", text)


def _found_anywhere(completion: str, golds: list[str]) -> Grade:
    """Grade the answer that math-verify finds in the whole text."""
    found = symbolic.library().parse(completion, parsing_timeout=None, fallback_mode="no_fallback")
    if not found:
        return Grade(False, "no answer found")
    given = symbolic.exact(found[0])
    known = [formula for gold in golds if (formula := symbolic.parsed(_readable(gold))) is not None]
    right = any(symbolic.same_formula(formula, given) for formula in known)
    return Grade(right, "the same value" if right else f"not the same: {str(given)[:80]}")
