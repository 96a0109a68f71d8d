"""Our own runs: metrics.jsonl, with config.toml beside it where it is still there."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from aepo.doctor.names import AEPO, recognise
from aepo.doctor.readers.rows import Text, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: Text) -> list[Log]:
    """A row a step."""
    rows = [flat(row) for row in text.rows]
    if not rows or recognise(rows[0]) is not AEPO:
        return []
    return [make_log(AEPO, text.path, stepped(rows, "step"), settings=_settings(text.path.with_name("config.toml")))]


def _settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError):
        return {}
