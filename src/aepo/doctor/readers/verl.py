"""verl: the file logger's JSON lines {"step": n, "data": {...}}, and the console's `step:n - key:value - ...` lines."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from aepo.doctor.names import EASYR1, VERL, recognise
from aepo.doctor.readers.rows import Row, Text, flat, make_log, number, stepped, unwrapped
from aepo.doctor.types import Log

# Ray puts "(TaskRunner pid=...) " before it.
_LINE = re.compile(r"\bstep:(\d{1,18}) - (\S+:\S.*)$", re.MULTILINE)


def read(text: Text) -> list[Log]:
    """Of either kind."""
    logged = [row for row in text.rows if isinstance(row.get("data"), dict) and "step" in row]
    rows = [] if text.rows else _from_console(text.text)
    if not logged and not rows:
        return []
    rows = rows or stepped([_from_file(row) for row in logged], "step")
    keys = {key for _, row in rows for key in row}
    return [make_log(EASYR1 if recognise(keys) is EASYR1 else VERL, text.path, rows)]


def _from_file(row: Mapping[str, Any]) -> Row:
    """Its logger (orjson) writes null for NaN and for infinity."""
    data = {key: math.nan if value is None else value for key, value in row["data"].items()}
    return flat({**data, "step": row["step"]})


def _from_console(text: str) -> list[tuple[int, Row]]:
    rows: list[tuple[int, Row]] = []
    for line in _LINE.finditer(unwrapped(text)):
        row = {}
        for part in line[2].split(" - "):
            key, _, value = part.strip().rpartition(":")
            if (measured := number(value)) is not None:
                row[key] = measured
        rows.append((int(line[1]), row))
    return rows
