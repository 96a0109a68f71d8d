"""Reader for verl: JSON lines {"step": n, "data": {...}} of its logger, console lines `step:n - key:value - ...`."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from aepo.doctor.names import EASYR1, VERL, recognise
from aepo.doctor.readers.rows import LogText, flat, make_log, number, stepped, unwrapped
from aepo.doctor.types import Log, LogRow

# Ray puts "(TaskRunner pid=...) " before the line.
_LINE = re.compile(r"\bstep:(\d{1,18}) - (\S+:\S.*)$", re.MULTILINE)


def read(text: LogText) -> list[Log]:
    """Return the log if the file is verl's JSON lines or console output, else an empty list."""
    logged = [row for row in text.rows if isinstance(row.get("data"), dict) and "step" in row]
    rows = [] if text.rows else _from_console(text.text)
    if not logged and not rows:
        return []
    rows = rows or stepped([_from_file(row) for row in logged], "step")
    keys = {key for _, row in rows for key in row}
    return [make_log(EASYR1 if recognise(keys) is EASYR1 else VERL, text.path, rows)]


def _from_file(row: Mapping[str, Any]) -> LogRow:
    """Return the row's numbers; verl's logger (orjson) writes null for NaN and for infinity."""
    data = {key: math.nan if value is None else value for key, value in row["data"].items()}
    return flat({**data, "step": row["step"]})


def _from_console(text: str) -> list[tuple[int, LogRow]]:
    rows: list[tuple[int, LogRow]] = []
    for line in _LINE.finditer(unwrapped(text)):
        row = {}
        for part in line[2].split(" - "):
            key, _, value = part.strip().rpartition(":")
            if (measured := number(value)) is not None:
                row[key] = measured
        rows.append((int(line[1]), row))
    return rows
