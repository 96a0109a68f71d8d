"""tinker-cookbook's metrics.jsonl: flat rows such as {"step": 0, "optim/entropy": ..., "env/all/reward/total": ...}."""

from __future__ import annotations

from aepo.doctor.names import TINKER, recognise
from aepo.doctor.readers.rows import Text, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: Text) -> list[Log]:
    """A row a step; evaluations are rows of their own."""
    rows = [flat(row) for row in text.rows]
    if any("_step" in row for row in rows) or recognise({key for row in rows for key in row}) is not TINKER:
        return []
    return [make_log(TINKER, text.path, stepped(rows, "step", "progress/batch"))]
