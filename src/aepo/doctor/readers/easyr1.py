"""EasyR1's file logger, experiment_log.jsonl: {"step": n, "actor": {"entropy_loss": ...}, ...}, nested at slashes."""

from __future__ import annotations

from aepo.doctor.names import EASYR1
from aepo.doctor.readers.rows import Text, flat, make_log, stepped
from aepo.doctor.types import Log


def read(text: Text) -> list[Log]:
    """Rows with groups; verl writes its groups under one `data`."""
    groups = {key for row in text.rows for key, value in row.items() if isinstance(value, dict)}
    if not groups & {"actor", "critic", "response_length"}:
        return []
    return [make_log(EASYR1, text.path, stepped([flat(row) for row in text.rows], "step"))]
