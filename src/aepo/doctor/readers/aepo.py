"""Reader for the runs of this package: metrics.jsonl, and config.toml beside it if it exists."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from aepo.doctor.names import AEPO, recognise
from aepo.doctor.readers.rows import LogText, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: LogText) -> list[Log]:
    """Return the log if the file has one row per step with the keys of this package, else an empty list."""
    rows = [flat(row) for row in text.rows]
    if not rows or recognise(rows[0]) is not AEPO:
        return []
    return [make_log(AEPO, text.path, stepped(rows, "step"), settings=_settings(text.path.with_name("config.toml")))]


def _settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}
