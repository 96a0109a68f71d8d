"""Grading of a file of programs, for `aepo grade --grader code`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from aepo.errors import InvalidValue, require
from aepo.grading.code.answer import code_of
from aepo.grading.code.formats import problem_of
from aepo.grading.code.judge import CodeGrade, CodeJudge
from aepo.grading.code.problem import CodeProblem
from aepo.grading.code.sandbox import Isolation, Limits, Sandbox
from aepo.grading.files import Summary, check_out, objects, write_rows

# Programs for each process that are judged between two reports of the progress.
_CHUNK = 16


def grade_code_file(
    path: Path,
    out: Path,
    processes: int,
    seconds: int,
    sandbox: Isolation,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Judge the programs of a JSONL file of {"completion", "tests", ...}, or of rows of any form of code problems.

    Each line gets `correct`, `reason`, `failed`, the counts of tests, the processor time, and how it was judged.

    Args:
        path: The JSONL file.
        out: Where the result is written, whole or not at all; it may be `path`.
        processes: The number of sandboxes at the same time.
        seconds: The processor time of one test, seconds.
        sandbox: The isolation.
        progress: Gets the numbers of judged programs and of all, from time to time.

    Raises:
        InvalidValue: The file or a line cannot be used, or no sandbox works here.
    """
    check_out(out)
    require(processes >= 1, "processes", processes, "at least 1")
    rows: list[dict[str, object]] = []
    pairs: list[tuple[str | None, CodeProblem]] = []
    for row, where in objects(path):
        if "completion" not in row:
            raise InvalidValue(where, list(row), "an object with 'completion'")
        if not isinstance(row["completion"], str):
            raise InvalidValue(f"{where}: completion", type(row["completion"]).__name__, "a text")
        problem = problem_of(row, where)
        rows.append(row)
        pairs.append((code_of(row["completion"], problem), problem))
    if not rows:
        raise InvalidValue("file", str(path), "a file with at least one line")
    isolated = Sandbox(sandbox, limits=Limits(seconds=seconds))
    isolated.check()
    started = time.perf_counter()
    with CodeJudge(isolated, processes) as judge:
        grades: list[CodeGrade] = []
        for first in range(0, len(pairs), _CHUNK * processes):
            grades += judge.judge(pairs[first : first + _CHUNK * processes])
            progress(len(grades), len(pairs))
    took = time.perf_counter() - started
    write_rows(out, [{**row, **_columns(grade)} for row, grade in zip(rows, grades, strict=True)])
    failures, right = (sum(getattr(grade, name) for grade in grades) for name in ("failed", "correct"))
    wrong = Counter(_kind(grade) for grade in grades if not grade.correct)
    return Summary(len(rows), right, failures, took, tuple(wrong.most_common()))


def _columns(grade: CodeGrade) -> dict[str, object]:
    return {"correct": grade.correct, "reason": grade.reason, "failed": grade.failed, **grade.details()}


def _kind(grade: CodeGrade) -> str:
    """Return why a program is wrong, without its own values."""
    if grade.failed:
        return "without a verdict"
    return "without code" if grade.reason.startswith("no code") else "fail a test"
