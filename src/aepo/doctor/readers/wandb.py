"""W&B: the file that its client writes in a run's folder, and runs on its server, read with the installed client.

The file (`run-ID.wandb`) is a LevelDB log of protocol buffers. The client has no public reader for it, and has moved
its own, so the few fields that are needed are decoded here; numbers of fields are those of wandb_internal.proto.
"""

from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aepo.doctor.readers.rows import Rows
from aepo.doctor.readers.runs import Found, Place, logs_or_refusal
from aepo.errors import InvalidValue

SCHEME = "wandb:"
_BLOCK, _FILE_HEADER, _HEADER = 32768, 7, 7
_FULL, _FIRST, _LAST = 1, 2, 4
# Record: history, run. HistoryRecord: item, step. RunRecord: run_id, display_name.
_HISTORY, _RUN = 2, 17
_ITEM, _STEP = 1, 2
_ID, _DISPLAY_NAME = 1, 8
# HistoryItem: key, nested_key, boolean, integer, number, value_json.
_KEY, _NESTED, _INTEGER, _NUMBER, _VALUE_JSON = 1, 2, 5, 6, 16


def read_file(path: Path) -> list[Found]:
    """Read the history of a run from the file of W&B's client.

    Raises:
        InvalidValue: The file cannot be read.
    """
    rows, name = Rows(), ""
    try:
        for record in _records(path):
            for field, value in _fields(record):
                if field == _HISTORY and isinstance(value, bytes):
                    rows.add(_history(value))
                elif field == _RUN and isinstance(value, bytes):
                    told = dict(_fields(value))
                    name = _text(told.get(_DISPLAY_NAME) or told.get(_ID) or b"")
    except (OSError, IndexError, struct.error) as error:
        raise InvalidValue("LOG", str(path), f"a history that W&B's client wrote ({error})") from None
    return logs_or_refusal(rows, Place(str(path), name=name, form="W&B", is_chart=True))


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records; one that the end of the file cuts off is left out."""
    with path.open("rb") as file:
        parts: list[bytes] = []
        offset = len(file.read(_FILE_HEADER))
        while block := file.read(_BLOCK - offset):
            at, offset = 0, 0
            while at + _HEADER <= len(block):
                _, length, kind = struct.unpack_from("<IHB", block, at)
                part = block[at + _HEADER : at + _HEADER + length]
                at += _HEADER + length
                if len(part) < length or kind == 0:
                    break
                parts = [part] if kind in (_FULL, _FIRST) else [*parts, part]
                if kind in (_FULL, _LAST):
                    yield b"".join(parts)


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield the number and the value of each field of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        elif kind == 2:
            length, at = _varint(message, at)
            yield tag >> 3, message[at : at + length]
            at += length
        elif kind in (1, 5):
            size, form = (8, "<d") if kind == 1 else (4, "<f")
            yield tag >> 3, struct.unpack_from(form, message, at)[0]
            at += size
        else:
            return


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _text(value: int | float | bytes) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else ""


def _history(message: bytes) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for field, value in _fields(message):
        if field == _STEP and isinstance(value, bytes):
            row.setdefault("_step", dict(_fields(value)).get(1, 0))
        elif field == _ITEM and isinstance(value, bytes):
            key, number = _item(value)
            if number is not None:
                row[key] = number
    return row


def _item(message: bytes) -> tuple[str, Any]:
    names, number = [], None
    for field, value in _fields(message):
        if field in (_KEY, _NESTED):
            names.append(_text(value))
        elif field in (_INTEGER, _NUMBER):
            number = value
        elif field == _VALUE_JSON and isinstance(value, bytes) and len(value) < 100:
            try:
                number = json.loads(value)
            except ValueError:
                number = None
    return "/".join(names), number


def remote(place: str) -> str | None:
    """Return what stands behind `wandb://`; None for a file. A path joins several slashes to one."""
    return place.removeprefix(SCHEME).strip("/") if place.startswith(f"{SCHEME}/") else None


def read_remote(run: str) -> list[Found]:
    """Read a run, or all runs of a project, from W&B's server with the client's own settings.

    Args:
        run: `entity/project/run`, or `entity/project`.

    Raises:
        InvalidValue: It is neither, the client is not installed, or the server does not give the run.
    """
    place = f"{SCHEME}//{run}"
    parts = run.split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise InvalidValue("LOG", place, "wandb://entity/project/run, or wandb://entity/project for all its runs")
    try:
        client = importlib.import_module("wandb")
    except ModuleNotFoundError:
        raise InvalidValue("LOG", place, "read with W&B's client: pip install 'aepo[wandb]'") from None
    try:
        server = client.Api()
        runs = [server.run(run)] if len(parts) == 3 else [*server.runs(run)]
        found = [each for history in runs for each in _remote_run(place, history)]
    except Exception as error:  # the client raises its own, those of HTTP and those of its settings
        said = " ".join(str(error).split())[:200]
        raise InvalidValue("LOG", place, f"a run that W&B's server gives ({type(error).__name__}: {said})") from None
    return found or [InvalidValue("LOG", place, "a project with at least one run in it")]


def _remote_run(place: str, run: Any) -> list[Found]:
    rows = Rows()
    for row in run.scan_history():
        rows.add(row)
    return logs_or_refusal(rows, Place(place, name=str(run.name), form="W&B", is_chart=True))
