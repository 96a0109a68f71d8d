"""Text files: JSON lines, JSON documents, tables, and console output."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from aepo.doctor.readers import documents, files, tables
from aepo.doctor.readers.consoles import Console
from aepo.doctor.readers.rows import Rows
from aepo.doctor.readers.runs import KNOWN, Found, Place, make_logs, seen
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def read(path: Path) -> list[Found]:
    """Read a text file.

    Raises:
        InvalidValue: The file cannot be read, or is no known log; the message says what it looks like.
    """
    start = files.head(path)
    with files.open_text(path, start) as file:
        first = files.decoded(start)
        place = Place(str(path), settings=_settings(path.with_name("config.toml")))
        if documents.LIST.match(first):
            return _document(file, documents.LIST, place)
        if _is_state(first):
            return _document(file, documents.HISTORY, place)
        if (delimiter := tables.delimiter(path, first)) is not None:
            return tables.read(file, delimiter, place)
        return _lines(file, place)


def _is_state(first: str) -> bool:
    """Return whether a file is one document with a history; rows of ms-swift's JSON lines can have one, too."""
    line, _, rest = first.strip().partition("\n")
    is_rows = bool(rest) and documents.object_of(line) != (None, True)
    return line.startswith("{") and not is_rows and bool(documents.HISTORY.search(first))


def _settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}


def _document(file: TextIO, after: re.Pattern[str], place: Place) -> list[Found]:
    rows, broken, notes = Rows(), 0, list[str]()
    for found in documents.objects(files.chunks(file, notes), after):
        if found is None:
            broken += 1
        else:
            rows.add(found)
    if logs := _of(rows, _noted(place, broken, rows, notes)):
        return [*logs]
    what = "the state of a trainer, and its rows have" if after is documents.HISTORY else "a JSON list of rows with"
    raise InvalidValue("LOG", place.source, f"{KNOWN}; this is {what} the keys {seen([rows])}")


def _lines(file: TextIO, place: Place) -> list[Found]:
    """Read JSON lines and console lines; a file can have both. A last line that was cut off is no broken line."""
    rows, console, broken, total, last_broken = Rows(), Console(), 0, 0, 0
    notes: list[str] = []
    for line in files.lines(file, notes):
        total += 1
        if "\x1b" in line:
            line = _COLOUR.sub("", line)
        if line.startswith('{"') or (line.startswith("{") and not line.startswith("{'")):
            found, is_broken = documents.object_of(line)
            if is_broken:
                broken, last_broken = broken + 1, total
            if found is not None:
                _add(rows, found)
            continue
        console.line(line.rstrip("\n"))
    place = _noted(place, broken - (last_broken == total and broken > 0), rows, notes)
    found_rows = [rows, *console.rows()]
    logs = [log for each in found_rows if each.count for log in _of(each, place)]
    if logs:
        return [*logs]
    kind, keys = "JSON lines" if rows.count else "text", seen(found_rows)
    said = f"{kind} with the keys {keys}" if keys != "none" else f"{kind} in which no line is one that a trainer prints"
    raise InvalidValue("LOG", place.source, f"{KNOWN}; this is {said}")


def _add(rows: Rows, found: dict[str, Any]) -> None:
    data = found.get("data")
    if isinstance(data, dict) and "step" in found:
        # verl's logger (orjson) writes null for NaN and for infinity.
        rows.add({**data, "step": found["step"]}, null=math.nan)
    elif isinstance(metrics := found.get("metrics"), dict) and "step" in found:
        rows.add({**metrics, "step": found["step"]})
    else:
        rows.add(found)


def _of(rows: Rows, place: Place) -> list[Log]:
    return make_logs(rows, replace(place, form="W&B") if "_step" in rows.names else place)


def _noted(place: Place, broken: int, rows: Rows, notes: list[str]) -> Place:
    what = "1 broken row was" if broken == 1 else f"{broken} broken rows were"
    left_out = [f"{what} left out; {rows.count} rows were read"] if broken else []
    return replace(place, notes=(*left_out, *notes))
