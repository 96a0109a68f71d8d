"""verl: the file logger's JSON lines {"step": n, "data": {...}}, and the console's `step:n - key:value - ...` lines."""

from __future__ import annotations

import re

from aepo.doctor.names import EASYR1, VERL, recognise
from aepo.doctor.readers.rows import Row, Text, flat, make_log, number, stepped
from aepo.doctor.types import Log

# Ray puts "(TaskRunner pid=...) " before it.
_LINE = re.compile(r"\bstep:(\d+) - (\S+:\S.*)$", re.MULTILINE)


def read(text: Text) -> list[Log]:
    """Of either kind."""
    rows = _from_file(text) if text.rows else _from_console(text.text)
    if not rows:
        return []
    keys = {key for _, row in rows for key in row}
    return [make_log(EASYR1 if recognise(keys) is EASYR1 else VERL, text.path, rows)]


def _from_file(text: Text) -> list[tuple[int, Row]]:
    rows = [row for row in text.rows if isinstance(row.get("data"), dict)]
    return stepped([{**flat(row["data"]), "step": float(row["step"])} for row in rows if "step" in row], "step")


def _from_console(text: str) -> list[tuple[int, Row]]:
    rows: list[tuple[int, Row]] = []
    for line in _LINE.finditer(text):
        row = {}
        for part in line[2].split(" - "):
            key, _, value = part.strip().rpartition(":")
            if (measured := number(value)) is not None:
                row[key] = measured
        rows.append((int(line[1]), row))
    return rows
