"""Tables: W&B's charts ("run - metric" columns) and histories, a trainer's rows, Unsloth's table in a notebook."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from aepo.doctor.names import STEPS
from aepo.doctor.readers import files
from aepo.doctor.readers.rows import Rows, plain, some_of
from aepo.doctor.readers.runs import Found, Place, logs_or_refusal
from aepo.errors import InvalidValue

# W&B adds these columns to a chart: the extremes of a group, or of the points that it draws as one.
_EXTREME = re.compile(r"__(?:MIN|MAX)$")


def delimiter(path: Path, first: str) -> str | None:
    """Return what separates the columns if the file is a table, else None."""
    head = first.lstrip().split("\n", 1)[0]
    sign = "\t" if head.count("\t") > head.count(",") else ","
    if {suffix.lower() for suffix in path.suffixes} & {".csv", ".tsv"}:
        return sign
    columns = [column.strip(" \"'\r") for column in head.split(sign)]
    return sign if len(columns) > 1 and plain(columns[0]) in STEPS else None


def read(file: TextIO, sign: str, place: Place) -> list[Found]:
    """Return one log, or the reason why there is none, for each run in the table.

    Raises:
        InvalidValue: The table has no step, or no rows.
    """
    runs: dict[str, Rows] = {}
    notes: list[str] = []
    try:
        table = csv.reader(files.lines(file, notes), delimiter=sign)
        columns = _columns(next((row for row in table if any(cell.strip() for cell in row)), []))
        steps = [(at, key) for at, (run, key) in columns.items() if run is None]
        by_run: dict[str, list[tuple[int, str]]] = {}
        for at, (run, key) in columns.items():
            if run is not None:
                by_run.setdefault(run, []).append((at, key))
        for cells in table:
            clock = {key: cells[at] for at, key in steps if at < len(cells) and cells[at]}
            for run, metrics in by_run.items():
                row = {key: cells[at] for at, key in metrics if at < len(cells) and cells[at]}
                if row:
                    runs.setdefault(run, Rows()).add({**clock, **row})
    except csv.Error as error:
        raise InvalidValue("LOG", place.source, f"a CSV of numbers, without columns of text ({error})") from None
    is_wandb = any(run for run in runs) or any(key == "_step" for _, key in steps)
    form = "W&B" if is_wandb or any(key == "Step" for _, key in steps) else ""
    chart = replace(place, form=form, is_chart=bool(steps), notes=tuple(notes))
    if not runs or not steps:
        keys = some_of({key for _, key in columns.values()})
        raise InvalidValue("LOG", place.source, f"a table with a step and a known trainer's metrics (it has {keys})")
    return [found for run, rows in runs.items() for found in logs_or_refusal(rows, replace(chart, name=run))]


def _columns(header: list[str]) -> dict[int, tuple[str | None, str]]:
    """Return for each column its run and its key; the run is None for a step, and "" where no run is named."""
    names = [column.strip() for column in header]
    is_history = "_step" in names
    found: dict[int, tuple[str | None, str]] = {}
    for at, column in enumerate(names):
        run, _, key = ("", "", column) if is_history else column.rpartition(" - ")
        if plain(column) in STEPS:
            found[at] = (None, column)
        elif key not in STEPS and not _EXTREME.search(key):
            found[at] = (run, key)
    return found
