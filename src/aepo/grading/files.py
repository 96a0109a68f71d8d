"""Grading a file: `aepo grade`."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue
from aepo.grading.base import Grade, Grader
from aepo.grading.pool import GradingPool


@dataclass(frozen=True)
class Summary:
    """What came out. seconds: of grading, with the start of the processes."""

    count: int
    correct: int
    failures: int
    seconds: float

    def line(self) -> str:
        """For people."""
        share, speed = self.correct / self.count, self.count / self.seconds
        return f"{self.count} graded, {share:.1%} correct, {self.failures} failures, {speed:.0f} a second"


def grade_file(path: Path, out: Path, grader: Grader, processes: int, seconds: float) -> Summary:
    """Add `correct`, `reason` and `failed` to every line of a JSONL file of {"completion", "answer", ...}.

    The result appears at `out` whole or not at all; `out` may be `path`. Raises `InvalidValue` with the line's number
    for what cannot be read.
    """
    rows = list(_rows(path))
    if not rows:
        raise InvalidValue("file", str(path), "a file with at least one line")
    pairs = [(row["completion"], answer_text(row["answer"])) for row in rows]
    started = time.perf_counter()
    with GradingPool(grader, processes, seconds) as pool:
        grades = pool.grade(pairs)
    took = time.perf_counter() - started
    _write(out, [_with_grade(row, grade) for row, grade in zip(rows, grades, strict=True)])
    return Summary(len(rows), sum(grade.correct for grade in grades), pool.failures, took)


def answer_text(value: Any) -> str:
    """A benchmark's answer as text: 27.0 is "27", a list of one is its item, a longer list is its JSON.

    Graders accept any item of such a JSON list. Raises `InvalidValue` for what is no answer.
    """
    if isinstance(value, list) and len(value) == 1:
        return answer_text(value[0])
    if isinstance(value, list) and value:
        return json.dumps([answer_text(item) for item in value])
    if isinstance(value, float) and math.isfinite(value):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InvalidValue("answer", value, "a text, a number or a list of these")


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidValue("file", str(path), f"a readable JSONL file ({error.strerror})") from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(line, f"{path}, line {number}")


def _row(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        raise InvalidValue(where, _shown(line), f"one JSON object in UTF-8 ({error})") from None
    if not isinstance(row, dict):
        raise InvalidValue(where, _shown(line), "one JSON object")
    for name in ("completion", "answer"):
        if name not in row:
            raise InvalidValue(where, list(row), f"an object with {name!r}")
    if not isinstance(row["completion"], str):
        raise InvalidValue(f"{where}: completion", type(row["completion"]).__name__, "a text")
    try:
        answer_text(row["answer"])
    except InvalidValue as error:
        raise InvalidValue(f"{where}: answer", error.got, error.wanted) from None
    return row


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
