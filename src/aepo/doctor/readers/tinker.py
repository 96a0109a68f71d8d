"""Reader for tinker-cookbook's metrics.jsonl.

Its rows are flat, such as {"step": 0, "optim/entropy": ..., "env/all/reward/total": ...}.
"""

from __future__ import annotations

from aepo.doctor.names import TINKER, recognise
from aepo.doctor.readers.rows import LogText, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: LogText) -> list[Log]:
    """Return the log if the rows have tinker-cookbook's keys, else an empty list; evaluations are separate rows."""
    rows = [flat(row) for row in text.rows]
    if any("_step" in row for row in rows) or recognise({key for row in rows for key in row}) is not TINKER:
        return []
    return [make_log(TINKER, text.path, stepped(rows, "step", "progress/batch"))]
