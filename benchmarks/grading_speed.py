"""How fast is the grader `math`, against math-verify called directly, on the same rows in one process?

python benchmarks/grading_speed.py DATA [--every 20] [--kinds self solutions value changed kinds]

Each row is a completion and a known answer, graded once by `MathGrader` and once by `math_verify.parse` of both texts
and `math_verify.verify`. The two go first in turn, because the second finds the parser's tables and caches filled by
the first; and a busy machine slows both. Seconds are processor time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import answer_kinds
from gold_answers import FILES, Gold, boxed, changed, of_kinds, read, respelled

from aepo.grading.math import MathGrader
from aepo.grading.text import accepted, clean, last_boxed

Row = tuple[str, str]


def rows(golds: list[Gold]) -> dict[str, list[Row]]:
    """(completion, known answer) of each kind."""
    return {
        "self": [(boxed(accepted(gold.answer)[-1]), gold.answer) for gold in golds],
        "solutions": [(gold.solution, gold.answer) for gold in golds if last_boxed(gold.solution) is not None],
        "value": [(boxed(text), gold.answer) for gold in golds if (text := respelled(gold.answer)) is not None],
        "changed": [(boxed(text), gold.answer) for gold in golds for _, text in changed(gold.answer)],
        "kinds": [(text, gold.answer) for _, gold, text in of_kinds(golds[::5], answer_kinds.spelled)],
    }


def math_verify_grade() -> Callable[[str, str], bool]:
    """math-verify as its documentation calls it: the known answer is put between dollar signs."""
    from math_verify import parse, verify

    def grade(completion: str, answer: str) -> bool:
        known = parse(f"${clean(accepted(answer)[-1])}$", parsing_timeout=None)
        return verify(known, parse(completion, parsing_timeout=None), timeout_seconds=None)

    return grade


def timed(grade: Callable[[str, str], object], row: Row) -> float:
    started = time.process_time()
    grade(*row)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--every", type=int, default=20, help="take every k-th known answer")
    parser.add_argument("--kinds", nargs="+", default=["self", "solutions", "value", "changed", "kinds"])
    arguments = parser.parse_args()
    found = rows([gold for file in FILES for gold in read(arguments.data, file)[:: arguments.every]])
    ours, theirs = MathGrader().grade, math_verify_grade()
    for grade in (ours, theirs):  # Imports and first calls are not measured.
        grade(r"\boxed{x + 1}", "1 + x")
    print("| rows | n | MathGrader, a second | math-verify, a second | times as fast |\n|---|---|---|---|---|")
    total = [0.0, 0.0]
    for kind in arguments.kinds:
        seconds = [0.0, 0.0]
        for number, row in enumerate(found[kind]):
            for which in (0, 1) if number % 2 else (1, 0):
                seconds[which] += timed((ours, theirs)[which], row)
        total = [a + b for a, b in zip(total, seconds, strict=True)]
        print_row(kind, len(found[kind]), seconds)
    print_row("all", sum(len(found[kind]) for kind in arguments.kinds), total)


def print_row(kind: str, count: int, seconds: list[float]) -> None:
    fast, slow = (count / each for each in seconds)
    print(f"| {kind} | {count} | {fast:.0f} | {slow:.0f} | {fast / slow:.1f} |", flush=True)


if __name__ == "__main__":
    main()
