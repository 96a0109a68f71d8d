"""Reader for W&B exports: a chart's CSV ("run - metric" columns), or a run's history as JSON lines or CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from aepo.doctor.names import Dialect, recognise
from aepo.doctor.readers.rows import PREFIX, LogText, flat, make_log, number, some_of, stepped, unprefixed
from aepo.doctor.types import Log, LogRow
from aepo.errors import InvalidValue

# The trainer's own step counters come first: `_step` counts the calls of W&B's log function.
STEPS = ("global_step", "training/global_step", "_step", "Step", "step")
OF_WANDB = {*STEPS, "_runtime", "_timestamp"}


def read(text: LogText) -> list[Log]:
    """Return one log for each run in the export, or an empty list if the file is no W&B export.

    Raises:
        InvalidValue: The export has no step, or no metric of a known trainer.
    """
    if text.rows:
        return [_log(text, "", [flat(row) for row in text.rows])] if any("_step" in row for row in text.rows) else []
    if text.path.suffix != ".csv":
        return []
    return [_log(text, run, rows) for run, rows in _runs(_records(text)).items()]


def _records(text: LogText) -> list[dict[str, str]]:
    try:
        return list(csv.DictReader(io.StringIO(text.text)))
    except csv.Error as error:
        raise InvalidValue("LOG", str(text.path), f"a CSV of numbers, without columns of text ({error})") from None


def _runs(records: Sequence[Mapping[str, str]]) -> dict[str, list[dict[str, float]]]:
    """Return the rows of each run by its name; the name is "" for a history, which has the column `_step`."""
    runs: dict[str, list[dict[str, float]]] = defaultdict(list)
    for record in records:
        cells = {column: value for column, cell in record.items() if (value := number(cell)) is not None}
        steps = {column: value for column, value in cells.items() if column.removeprefix(PREFIX) in STEPS}
        rows: dict[str, dict[str, float]] = defaultdict(dict)
        for column, value in cells.items():
            run, _, key = ("", "", column) if "_step" in record else column.rpartition(" - ")
            if column not in steps:
                rows[run][key] = value
        for run, row in rows.items():
            runs[run].append({**steps, **row})
    return runs


def _log(text: LogText, run: str, rows: Sequence[LogRow]) -> Log:
    plain = unprefixed(rows)
    keys = {key for row in plain for key in row}
    dialect = recognise(keys)
    steps = _by_one_clock(_measured(plain, dialect, is_history=not run and "_step" in keys)) if dialect else []
    if dialect is None or not steps:
        wanted = f"an export with a step and a known trainer's metrics (it has {some_of(keys)})"
        raise InvalidValue("LOG", str(text.path), wanted)
    log = make_log(dialect, text.path, steps, framework=f"{dialect.name} (W&B)")
    return dataclasses.replace(log, source=f"{log.source} ({run})") if run else log


def _measured(rows: Sequence[LogRow], dialect: Dialect, is_history: bool) -> list[LogRow]:
    """Return the rows that have one of the trainer's metrics.

    A history that was exported as a table has NaN in its gaps: in a row that logs something else, all metrics of the
    trainer are NaN. Such rows are left out. A chart leaves its gaps empty.
    """
    wanted = {key for names in dialect.keys.values() for key in names}
    keys = {key for row in rows for key in row}
    has_gaps = is_history and bool(keys - wanted - OF_WANDB)
    found = [[value for key, value in row.items() if key in wanted] for row in rows]
    return [
        row
        for row, values in zip(rows, found, strict=True)
        if values and not (has_gaps and all(map(math.isnan, values)))
    ]


def _by_one_clock(rows: Sequence[LogRow]) -> list[tuple[int, LogRow]]:
    """Number the rows by one step name: the first that half of the rows have, else the commonest.

    Different names count steps differently, so they are never mixed.
    """
    clock = max(STEPS, key=lambda name: min(len(stepped(rows, name)), len(rows) / 2))
    return stepped(rows, clock)
