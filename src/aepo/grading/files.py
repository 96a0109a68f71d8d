"""Grading of a file, for `aepo grade`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue, require
from aepo.grading.base import Grade, Grader
from aepo.grading.code.answer import code_of
from aepo.grading.code.formats import problem_of
from aepo.grading.code.judge import CodeJudge
from aepo.grading.code.sandbox import Isolation, Limits, Sandbox
from aepo.grading.pool import GradingPool


@dataclass(frozen=True)
class Summary:
    """`Summary` counts the grades of a file."""

    count: int
    """The number of graded completions."""
    correct: int
    """The number of right ones."""
    failures: int
    """The number of gradings that hung or crashed."""
    seconds: float
    """The time of grading with the start of the processes, seconds."""

    def line(self) -> str:
        """Return one line of text for the terminal."""
        share, speed = self.correct / self.count, self.count / self.seconds
        return f"{self.count} graded, {share:.1%} correct, {self.failures} failures, {speed:.0f} a second"


def grade_file(path: Path, out: Path, grader: Grader, processes: int, seconds: float) -> Summary:
    """Add `correct`, `reason` and `failed` to every line of a JSONL file of {"completion", "answer", ...}.

    Args:
        path: The JSONL file.
        out: Where the result is written, whole or not at all; it may be `path`.
        grader: The rule.
        processes: The number of grading processes.
        seconds: The time limit of one grading, seconds.

    Raises:
        InvalidValue: The file or a line cannot be used; the message has the number of the line.
    """
    rows = list(_rows(path, _check_answer))
    if not rows:
        raise InvalidValue("file", str(path), "a file with at least one line")
    pairs = [(row["completion"], benchmark_answer(row["answer"])) for row in rows]
    started = time.perf_counter()
    with GradingPool(grader, processes, seconds) as pool:
        grades = pool.grade(pairs)
    took = time.perf_counter() - started
    _write(out, [_with_grade(row, grade) for row, grade in zip(rows, grades, strict=True)])
    return Summary(len(rows), sum(grade.correct for grade in grades), pool.failures, took)


def grade_code_file(path: Path, out: Path, processes: int, seconds: int, sandbox: Isolation) -> Summary:
    """Judge the programs of a JSONL file of {"completion", "tests", ...}, or of rows of any form of code problems.

    Each line gets `correct`, `reason`, `failed`, the counts of tests, the processor time, and how it was judged.

    Args:
        path: The JSONL file.
        out: Where the result is written, whole or not at all; it may be `path`.
        processes: The number of sandboxes at the same time.
        seconds: The processor time of one test, seconds.
        sandbox: The isolation.

    Raises:
        InvalidValue: The file or a line cannot be used, or no sandbox works here.
    """
    require(processes >= 1, "processes", processes, "at least 1")
    rows = list(_rows(path, _check_code))
    if not rows:
        raise InvalidValue("file", str(path), "a file with at least one line")
    problems = [problem_of(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    isolated = Sandbox(sandbox, limits=Limits(seconds=seconds))
    isolated.check()
    started = time.perf_counter()
    with CodeJudge(isolated, processes) as judge:
        pairs = zip(rows, problems, strict=True)
        grades = judge.judge([(code_of(row["completion"], problem), problem) for row, problem in pairs])
    took = time.perf_counter() - started
    graded = [
        {**_with_grade(row, Grade(grade.correct, grade.reason, grade.failed)), **grade.details()}
        for row, grade in zip(rows, grades, strict=True)
    ]
    _write(out, graded)
    failures = sum(grade.failed for grade in grades)
    return Summary(len(rows), sum(grade.correct for grade in grades), failures, took)


def benchmark_answer(value: Any) -> str:
    """Return a benchmark's answer as text: 27.0 is "27", a list of one is its item, a longer list is its JSON.

    Graders accept any item of such a JSON list.

    Raises:
        InvalidValue: The value is no text, no finite number and no list of these, or it is empty.
    """
    if isinstance(value, list) and len(value) == 1:
        return benchmark_answer(value[0])
    if isinstance(value, list) and value:
        return json.dumps([benchmark_answer(item) for item in value])
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidValue("answer", value, "a text, a number or a list of these")


def _rows(path: Path, check: Callable[[dict[str, Any], str], None]) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidValue("file", str(path), f"a readable JSONL file ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(line, f"{path}, line {number}", check)


def _row(line: bytes, where: str, check: Callable[[dict[str, Any], str], None]) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidValue(where, _shown(line), f"one JSON object in UTF-8 ({error})") from None
    if not isinstance(row, dict):
        raise InvalidValue(where, _shown(line), "one JSON object")
    if "completion" not in row:
        raise InvalidValue(where, list(row), "an object with 'completion'")
    if not isinstance(row["completion"], str):
        raise InvalidValue(f"{where}: completion", type(row["completion"]).__name__, "a text")
    check(row, where)
    return row


def _check_answer(row: dict[str, Any], where: str) -> None:
    if "answer" not in row:
        raise InvalidValue(where, list(row), "an object with 'answer'")
    try:
        benchmark_answer(row["answer"])
    except InvalidValue as error:
        raise InvalidValue(f"{where}: answer", error.got, error.wanted) from None


def _check_code(row: dict[str, Any], where: str) -> None:
    problem_of(row, where)


def _shown(line: bytes) -> str:
    text = line.decode(errors="replace").strip()
    return text if len(text) <= 60 else text[:57] + "..."


def _with_grade(row: dict[str, Any], grade: Grade) -> dict[str, Any]:
    return {**row, "correct": grade.correct, "reason": grade.reason, "failed": grade.failed}


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
