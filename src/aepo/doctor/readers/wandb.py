"""W&B exports: a chart's CSV ("run - metric" columns), or a run's history as JSON lines or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections import defaultdict
from collections.abc import Sequence

from aepo.checks import InvalidValue
from aepo.doctor.names import recognise
from aepo.doctor.readers.rows import PREFIX, Row, Text, flat, make_log, number, stepped, unprefixed
from aepo.doctor.types import Log

STEPS = ("global_step", "training/global_step", "_step", "Step", "step")


def read(text: Text) -> list[Log]:
    """One log for each run in the export."""
    if text.rows:
        return [_log(text, "", [flat(row) for row in text.rows])] if any("_step" in row for row in text.rows) else []
    if text.path.suffix != ".csv":
        return []
    return [_log(text, run, rows) for run, rows in _runs(text.text).items()]


def _runs(text: str) -> dict[str, list[dict[str, float]]]:
    """Rows by run; a history's plain columns are the run ""."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record in csv.DictReader(io.StringIO(text)):
        cells = {column: value for column, cell in record.items() if (value := number(cell)) is not None}
        steps = {column: value for column, value in cells.items() if column.removeprefix(PREFIX) in STEPS}
        rows: dict[str, dict[str, float]] = defaultdict(dict)
        for column, value in cells.items():
            run, dash, key = column.partition(" - ")
            if column not in steps:
                rows[run if dash else ""][key if dash else column] = value
        for run, row in rows.items():
            runs[run].append({**steps, **row})
    return runs


def _log(text: Text, run: str, rows: Sequence[Row]) -> Log:
    plain = unprefixed(rows)
    keys = {key for row in plain for key in row}
    dialect = recognise(keys)
    steps = stepped(plain, *STEPS)
    if dialect is None or not steps:
        some = ", ".join(sorted(keys)[:6])
        raise InvalidValue(
            "LOG", str(text.path), f"an export with a step and a known trainer's metrics (it has {some})"
        )
    log = make_log(dialect, text.path, steps, framework=f"{dialect.name} (W&B)")
    return dataclasses.replace(log, source=f"{log.source} ({run})") if run else log
