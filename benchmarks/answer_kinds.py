"""Answers of each kind that the grader reads: other spellings of a known answer, and answers proven to be others.

`spelled(gold)` and `changed(gold)` make them from a benchmark's own answer; benchmarks/gold_answers.py grades them. A
changed answer has the same spelling as a right one, so that the rule for this spelling decides.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from aepo.grading.sets import inequality
from aepo.grading.text import bracketed, clean, exact_number, items

# (kind, known answer, completion)
Case = tuple[str, str, str]


def box(text: str) -> str:
    return f"So the answer is $\\boxed{{{text}}}$."


def latex(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    sign = "-" if number < 0 else ""
    return f"{sign}\\frac{{{abs(number.numerator)}}}{{{number.denominator}}}"


def spelled(answer: str) -> Iterator[Case]:
    """Completions that are right."""
    number = exact_number(clean(answer))
    if number is not None:
        yield from _with_number(latex(number), number, True)
    yield from _structured(answer, True)


def changed(answer: str) -> Iterator[Case]:
    """Completions that are wrong."""
    number = exact_number(clean(answer))
    if number is not None:
        value = latex(number)
        yield from _with_number(value, number + 1, False)
        yield "percent times 100", f"{value}\\%", box(f"{latex(100 * number + (number == 0))}\\%")
        if number.denominator == 1 and number:
            yield "percent times 100", value, box(f"{latex(100 * number)}\\%")
            yield "percent times 100", f"{value}\\%", box(latex(100 * number))
            yield "percent times 100", f"{latex(100 * number)}\\%", box(value)
        yield "currency", f"\u20ac{value}", box(f"\u00a3{value}")
        yield "currency", f"\u20ac{value}", box(f"\\${value}")
        yield "currency", f"{value}\\%", box(f"\\${value}")
        yield "several boxes", value, f"So $\\boxed{{{value}}}$ and $\\boxed{{{latex(number + 1)}}}$."
        yield "several boxes", value, f"So $\\boxed{{{latex(number + 1)}}}$, $\\boxed{{{value}}}$."
        yield (
            "several boxes",
            f"{value}, {latex(number + 1)}",
            f"So $\\boxed{{{value}}}$ or $\\boxed{{{latex(number + 2)}}}$.",
        )
        yield "yes or no", f"Yes, {value}", box(f"Yes, {latex(number + 1)}")
        if number.denominator == 1 and number > 0:
            yield "residue", value, box(f"n \\equiv {value} \\pmod{{{value}}}")
            other = f"n \\equiv {value} \\pmod{{{number + 3}}}"
            yield "residue", f"n \\equiv {value} \\pmod{{{number + 2}}}", box(other)
        yield "plain text", f"e^{{{value}}}", box(f"exp({number + 1})")
        yield "plain text", f"x^{{{value}}}", box(f"x**({number + 1})")
    yield from _structured(answer, False)
    for pair in (("Yes", "No"), ("No", "Yes"), ("True", "False"), ("False", "True")):
        yield "yes or no", pair[0], box(f"{pair[1]}, it is {clean(answer)[:20]}")


def _with_number(known: str, given: Fraction, right: bool) -> Iterator[Case]:
    value = latex(given)
    yield "percent", f"{known}\\%", box(value)
    yield "percent", known, box(f"{value}\\%")
    yield "percent", f"{known}\\%", box(f"{value}%")
    yield "currency", known, box(f"\u20ac{value}")
    yield "currency", known, box(f"\\text{{\u00a3}}{value}")
    yield "words before =", known, box(f"\\text{{Total Cost}} = {value}")
    yield "words before =", f"\\mathbf{{L}} = {known}", box(value)
    yield "power before =", known, box(f"z^3 = {value}")
    yield "markdown", known, box(f"**{value}**")
    yield "two backslashes", known, f"So $\\\\boxed{{{value}}}$."
    yield "plain text", f"{known} \\pi", box(f"({given})*pi")
    yield "several boxes", f"{known}, 0.123", f"So $\\boxed{{{value}}}$, and $\\boxed{{0.123}}$."
    yield "several boxes", known, f"So $\\boxed{{{value}}}$ (in \\boxed{{}})."
    yield "tuple with names", f"({known}, 7)", box(f"(x, y) = ({value}, 7)")
    yield "tuple with names", f"({known}, 7)", box(f"x = {value}, y = 7")
    yield "tuple with names", f"(p, q) = (7, {known})", box(f"(7, {value})")
    yield "inequality or interval", f"[{known}, \\infty)", box(f"x \\ge {value}")
    yield "inequality or interval", f"a < {known}", box(f"(-\\infty, {value})")
    yield "list in square brackets", f"[{known}, 0.123]", box(f"{value}, 0.123")
    if given.denominator == 1 and given >= 0:
        yield "residue", known, box(f"n \\equiv {value} \\pmod{{{given + 2}}}")
        yield "residue", f"n \\equiv {known} \\pmod{{{given + 2}}}", box(value)
    for letter, other in (("C", "C" if right else "D"), ("A", "A" if right else "B")):
        yield "choice", letter, box(f"{other}) {value}")
        yield "choice", letter, box(f"\\textbf{{({other})}}\\ {value}")


def _structured(answer: str, right: bool) -> Iterator[Case]:
    """Cases from a benchmark's tuples, intervals and inequalities with two numbers."""
    text = clean(answer)
    found = inequality(text)
    interval = found.interval if found else text
    inside = bracketed(interval)
    parts = items(inside[1], (",",)) if inside else []
    if inside is None or inside[0] not in ("(", "[") or len(parts) != 2:
        return
    low, high = map(exact_number, parts)
    if found and (low is not None or high is not None):
        yield "inequality or interval", text, box(interval if right else _flipped(interval))
    if low is None or high is None or low == high:
        return
    if inside[0] == "(" and inside[2] == ")" and not found:
        order = parts if right else parts[::-1]
        yield "tuple with names", text, box(f"(x, y) = ({order[0]}, {order[1]})")
        yield "tuple with names", text, box(f"x = {order[0]}, y = {order[1]}")
    if low < high:
        left, other = ("<" if inside[0] == "(" else r"\le"), ("<" if inside[2] == ")" else r"\le")
        swap = {"<": r"\le", r"\le": "<"}
        yield "inequality or interval", interval, box(f"{low} {left if right else swap[left]} x {other} {high}")
        yield "inequality or interval", interval, box(f"{low} {left} x {other} {high if right else high + 1}")


def _flipped(interval: str) -> str:
    """Return the interval with its finite end open in place of closed, or closed in place of open."""
    if not interval.startswith("(-\\infty"):
        return {"(": "[", "[": "("}[interval[0]] + interval[1:]
    return interval[:-1] + {")": "]", "]": ")"}[interval[-1]]
