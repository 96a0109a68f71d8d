"""Reader for EasyR1's experiment_log.jsonl: {"step": n, "actor": {"entropy_loss": ...}, ...}, nested at the slashes."""

from __future__ import annotations

from aepo.doctor.names import EASYR1
from aepo.doctor.readers.rows import LogText, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: LogText) -> list[Log]:
    """Return the log if its rows have EasyR1's nested groups, else an empty list; verl nests under one key, `data`."""
    groups = {key for row in text.rows for key, value in row.items() if isinstance(value, dict)}
    if not groups & {"actor", "critic", "response_length"}:
        return []
    return [make_log(EASYR1, text.path, stepped([flat(row) for row in text.rows], "step"))]
