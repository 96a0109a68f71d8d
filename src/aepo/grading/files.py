"""Grading of a file, for `aepo grade`."""

from __future__ import annotations

import json
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue, require
from aepo.grading.base import Grade, Grader
from aepo.grading.pool import GradingPool

# Completions that are graded between two reports of the progress.
_CHUNK = 128
_EXAMPLES = 5


@dataclass(frozen=True)
class Wrong:
    """`Wrong` is an example of a wrong answer."""

    row: int
    """The number of the graded row, from 1."""
    known: str
    """The known answer."""
    reason: str
    """Why it is wrong."""


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
    reasons: tuple[tuple[str, int], ...] = ()
    """Why answers are wrong, each with its count, the most frequent first."""
    examples: tuple[Wrong, ...] = ()
    """The first wrong answers."""

    def line(self) -> str:
        """Return one line of text for the terminal."""
        share, speed = self.correct / self.count, self.count / self.seconds
        return f"{self.count} graded, {share:.1%} correct, {self.failures} failures, {speed:.0f} a second"

    def lines(self) -> list[str]:
        """Return the line of `line`, and under it why answers are wrong, with examples."""
        if not self.reasons:
            return [self.line()]
        wrong = ", ".join(f"{count} {reason}" for reason, count in self.reasons)
        shown = [f"  row {each.row}: known {_cut(each.known, 40)}; {_cut(each.reason, 60)}" for each in self.examples]
        return [self.line(), f"wrong: {wrong}", *shown]


def grade_file(
    path: Path,
    out: Path,
    grader: Grader,
    processes: int,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Add `correct`, `reason` and `failed` to every line of a JSONL file of {"completion", "answer", ...}.

    Rows of `aepo evaluate` are read, too: their completion is `text` and their known answer `known`.

    Args:
        path: The JSONL file, or the folder of an evaluation.
        out: Where the result is written, whole or not at all; it may be `path`.
        grader: The rule.
        processes: The number of grading processes.
        seconds: The limit of one grading, seconds of processor time.
        progress: Gets the numbers of graded completions and of all, from time to time.

    Raises:
        InvalidValue: The file or a line cannot be used; the message has the number of the line.
    """
    check_out(out)
    rows = list(_rows(path))
    if not rows:
        raise InvalidValue("file", str(path), "a file with at least one line")
    pairs = [_pair(row) for row in rows]
    grades: list[Grade] = []
    started = time.perf_counter()
    with GradingPool(grader, processes, seconds) as pool:
        for first in range(0, len(pairs), _CHUNK):
            grades += pool.grade(pairs[first : first + _CHUNK])
            progress(len(grades), len(pairs))
    took = time.perf_counter() - started
    write_rows(out, [_with_grade(row, grade) for row, grade in zip(rows, grades, strict=True)])
    return _summary(pairs, grades, pool.failures, took)


def _summary(pairs: list[tuple[str, str]], grades: list[Grade], failures: int, took: float) -> Summary:
    wrong = [number for number, grade in enumerate(grades) if not grade.correct]
    reasons = Counter(grades[number].reason.split(":")[0] for number in wrong)
    examples = tuple(Wrong(number + 1, pairs[number][1], grades[number].reason) for number in wrong[:_EXAMPLES])
    return Summary(len(grades), len(grades) - len(wrong), failures, took, tuple(reasons.most_common()), examples)


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


def _pair(row: dict[str, Any]) -> tuple[str, str]:
    """Return (completion, known answer)."""
    names = ("text", "known") if _is_evaluation(row) else ("completion", "answer")
    return row[names[0]], benchmark_answer(row[names[1]])


def _is_evaluation(row: dict[str, Any]) -> bool:
    """Return whether `aepo evaluate` wrote the row. Its `answer` is what the completion says, not the known answer."""
    return "completion" not in row and {"text", "benchmark", "pass"} <= row.keys()


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    path = path / "samples.jsonl" if path.is_dir() else path
    for row, where in objects(path):
        _check(row, where)
        yield row


def objects(path: Path) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the objects of a JSONL file, each with the name of its line for messages.

    Raises:
        InvalidValue: The file cannot be read, or a line is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidValue("file", str(path), f"a readable JSONL file ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{path}, line {number}"
            yield _object(line, where), where


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidValue(where, _shown(line), f"one JSON object in UTF-8 ({error})") from None
    if not isinstance(row, dict):
        raise InvalidValue(where, _shown(line), "one JSON object")
    return row


def _check(row: dict[str, Any], where: str) -> None:
    if _is_evaluation(row) and row.get("known") is None:
        wanted = "a row with `known`, the known answer (evaluations before 0.2 and tasks without answers have none)"
        raise InvalidValue(where, list(row), wanted)
    completion, answer = ("text", "known") if _is_evaluation(row) else ("completion", "answer")
    for name in (completion, answer):
        if name not in row:
            raise InvalidValue(where, list(row), f"an object with {name!r}")
    if not isinstance(row[completion], str):
        raise InvalidValue(f"{where}: {completion}", type(row[completion]).__name__, "a text")
    try:
        benchmark_answer(row[answer])
    except InvalidValue as error:
        raise InvalidValue(f"{where}: {answer}", error.got, error.wanted) from None


def _shown(line: bytes) -> str:
    return _cut(line.decode(errors="replace").strip(), 60)


def _cut(text: str, longest: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _with_grade(row: dict[str, Any], grade: Grade) -> dict[str, Any]:
    return {**row, "correct": grade.correct, "reason": grade.reason, "failed": grade.failed}


def check_out(out: Path) -> None:
    """Check that a file can be written at this path, before the work starts.

    Raises:
        InvalidValue: The path is a folder, or its folder cannot be made or written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidValue("--out", str(out), f"a file in a folder that can be made ({error.strerror})") from None
    ready = not out.is_dir() and os.access(out.parent, os.W_OK)
    require(ready, "--out", str(out), "the path of a file that can be written")


def write_rows(out: Path, rows: list[dict[str, Any]]) -> None:
    """Write a JSONL file, whole or not at all."""
    partial = out.with_name(out.name + ".partial")
    try:
        partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
