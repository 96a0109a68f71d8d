"""Does the grader know the benchmarks' own answers, and does it refuse answers that are proven to be others?

python benchmarks/gold_answers.py DATA [--grader math] [--processes 2] [--seconds 20] [--every 1]

DATA is a folder with the benchmarks/*.jsonl files of Qwen2.5-Math. Six tables: every gold answer in a box against
itself; numbers and formulas against themselves in another spelling, so that the rule for equal texts does not decide;
every gold solution that boxes its answer against the gold answer; and answers changed so that exact arithmetic or sympy
proves them different, against the gold answer; and both for each kind of answer that the grader reads
(benchmarks/answer_kinds.py).
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import answer_kinds

from aepo.grading.files import benchmark_answer
from aepo.grading.pool import GradingPool
from aepo.grading.symbolic import parsed
from aepo.grading.table import GRADERS
from aepo.grading.text import accepted, bracketed, clean, exact_number, items, last_boxed

FILES = ("aime24", "amc23", "college_math", "gsm8k", "math500", "minerva_math", "olympiadbench")


@dataclass(frozen=True)
class Gold:
    """line: of the file, from 1. solution: empty where the file has none."""

    file: str
    line: int
    answer: str
    solution: str


def read(data: Path, file: str) -> list[Gold]:
    lines = (data / "benchmarks" / f"{file}.jsonl").read_text().splitlines()
    return [gold(file, number, json.loads(line)) for number, line in enumerate(lines, 1)]


def gold(file: str, line: int, row: dict) -> Gold:
    solution = row.get("solution", "")
    solution = "\n".join(solution) if isinstance(solution, list) else solution
    answer = row.get("answer", row.get("final_answer"))
    # Minerva's file has no column for the answer: it is the box in the solution.
    return Gold(file, line, last_boxed(solution) or "" if answer is None else benchmark_answer(answer), solution)


def boxed(text: str) -> str:
    return f"So the answer is \\boxed{{{text}}}."


def respelled(answer: str) -> str | None:
    """The same value in another text; None for words, relations, lists and brackets, where this is no formula."""
    text = clean(accepted(answer)[-1])
    number = exact_number(text)
    if number is not None:
        return f"\\frac{{{3 * number.numerator}}}{{{3 * number.denominator}}}"
    if len(text) > 200 or re.search(r"text|[A-Za-z]{4,}(?![A-Za-z]*\})|=|[<>]|^yes$", re.sub(r"\\[A-Za-z]+", "", text)):
        return None
    if re.search(r"(?i)\\([lg]eq?|neq|approx|in|mathrm|text|mbox)|^(yes|no)$|\band\b|\bor\b|\bat\b", text):
        return None
    if bracketed(text) or len(items(text)) > 1 or r"\pm" in text or r"\cup" in text or r"\begin" in text:
        return None
    return f"0 + ({text}) \\cdot 1"


def changed(answer: str) -> Iterator[tuple[str, str]]:
    """(kind, another answer), each proven to differ from the gold answer."""
    text = clean(accepted(answer)[-1])
    number = exact_number(text)
    if number is not None:
        plain = re.fullmatch(r"-?\d+", text.replace(",", ""))
        yield "plus 1", f"\\frac{{{number.numerator + number.denominator}}}{{{number.denominator}}}"
        yield "numerator + 1", f"\\frac{{{number.numerator + 1}}}{{{number.denominator}}}"
        if number:
            yield "times 2", f"\\frac{{{2 * number.numerator}}}{{{number.denominator}}}"
            yield "sign", text[1:] if text.startswith("-") else f"-{text}"
        if plain:
            yield "almost", f"{text}.0000001"
        return
    yield from _bracket_changed(text)
    formula = parsed(text) if len(text) <= 120 and "=" not in text and "approx" not in text else None
    if formula is not None and getattr(formula, "is_number", False) and formula.is_finite:
        # x + 1 differs from x wherever x is a finite number; -x and 2 x where it is not zero, which evalf proves.
        yield "expression + 1", f"{text} + 1"
        if abs(formula.evalf(30)) > 1e-9:
            yield "expression sign", f"-({text})"
    elif formula is not None and getattr(formula, "free_symbols", None) and getattr(formula, "is_commutative", False):
        yield "expression + 1", f"{text} + 1"


def _bracket_changed(text: str) -> Iterator[tuple[str, str]]:
    found = bracketed(text)
    if found is None or found[0] == r"\{":
        return
    opening, inside, closing = found
    parts = items(inside, (",",))
    if len(parts) >= 2:
        other = {"(": "[", "[": "("}[opening]
        yield "bracket flipped", f"{other}{inside}{closing}"
        number = exact_number(parts[-1])
        if number is not None:
            yield "element + 1", f"{opening}{', '.join(parts[:-1])}, {number + 1}{closing}"
            yield "element dropped", f"{opening}{', '.join(parts[:-1])}, {parts[-1]}, 0{closing}"


def of_kinds(golds: list[Gold], make: Callable[[str], Iterator[answer_kinds.Case]]) -> list[tuple[str, Gold, str]]:
    """Return (kind, gold with the known answer of the case, completion) without repetitions."""
    found = {case: gold for gold in golds for case in make(accepted(gold.answer)[-1])}
    return [(kind, replace(gold, answer=answer), completion) for (kind, answer, completion), gold in found.items()]


def run(pool: GradingPool, title: str, cases: list[tuple[str, Gold, str]], wanted: bool) -> int:
    """Grade (kind, gold, completion), print a row for each kind and every case that came out otherwise."""
    started = time.perf_counter()
    grades = pool.grade([(completion, case.answer) for _, case, completion in cases])
    took = time.perf_counter() - started
    print(f"\n| {title} | n | as wanted | otherwise | failures |\n|---|---|---|---|---|")
    wrong = [
        (case, grade) for case, grade in zip(cases, grades, strict=True) if grade.correct != wanted or grade.failed
    ]
    for kind in dict.fromkeys(kind for kind, _, _ in cases):
        of_kind = [grade for case, grade in zip(cases, grades, strict=True) if case[0] == kind]
        right = sum(grade.correct == wanted and not grade.failed for grade in of_kind)
        failed = sum(grade.failed for grade in of_kind)
        print(f"| {kind} | {len(of_kind)} | {right} | {len(of_kind) - right} | {failed} |")
    print(f"\n{len(cases)} gradings in {took:.1f} s: {len(cases) / took:.0f} a second")
    for (_, case, completion), grade in wrong:
        given = last_boxed(completion) or ""
        print(f"- {case.file} line {case.line}: {given[:110]!r} for {case.answer[-110:]!r}: {grade.reason[:60]}")
    return len(wrong)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--grader", choices=GRADERS, default="math")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--every", type=int, default=1, help="take every k-th line")
    parser.add_argument("--parts", nargs="+", default=["self", "value", "solutions", "changed", "kinds"])
    arguments = parser.parse_args()
    golds = [gold for file in FILES for gold in read(arguments.data, file)[:: arguments.every]]
    with GradingPool(GRADERS[arguments.grader](), arguments.processes, arguments.seconds) as pool:
        if "self" in arguments.parts:
            run(pool, "gold against itself", [(g.file, g, boxed(accepted(g.answer)[-1])) for g in golds], True)
        if "value" in arguments.parts:
            values = [(g.file, g, boxed(text)) for g in golds if (text := respelled(g.answer)) is not None]
            run(pool, "gold in another spelling", values, True)
        if "solutions" in arguments.parts:
            solved = [(g.file, g, g.solution) for g in golds if last_boxed(g.solution) is not None]
            run(pool, "gold solution", solved, True)
        if "changed" in arguments.parts:
            others = [(kind, g, boxed(text)) for g in golds for kind, text in changed(g.answer)]
            run(pool, "changed answer", others, False)
        if "kinds" in arguments.parts:
            run(pool, "answer of a kind", of_kinds(golds, answer_kinds.spelled), True)
            run(pool, "changed answer of a kind", of_kinds(golds, answer_kinds.changed), False)


if __name__ == "__main__":
    main()
