"""Stores of trackers on this machine: MLflow's folder and database, and trackio's database."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from aepo.doctor.readers.rows import Rows, some_of
from aepo.doctor.readers.runs import Found, Place, logs_or_refusal
from aepo.errors import InvalidValue

MLFLOW_RUN = {"meta.yaml", "metrics"}
"""What lies in the folder of one run of MLflow."""


def read_mlruns(folder: Path) -> list[Found]:
    """Read one run of MLflow's folders: a file for each metric, with a line `timestamp value step` for each step."""
    numbers: dict[int, dict[str, str]] = {}
    metrics = folder / "metrics"
    for file in sorted(path for path in metrics.rglob("*") if path.is_file()):
        key = file.relative_to(metrics).as_posix()
        with file.open(errors="replace") as lines:
            for parts in map(str.split, lines):
                if len(parts) == 3 and parts[2].isdecimal():
                    numbers.setdefault(int(parts[2]), {})[key] = parts[1]
    rows = Rows()
    for step in sorted(numbers):
        rows.add({"_step": float(step), **numbers[step]})
    return logs_or_refusal(rows, Place(str(folder), name=_name(folder), form="MLflow", is_chart=True))


def _name(folder: Path) -> str:
    name = folder / "tags" / "mlflow.runName"
    return name.read_text(errors="replace").strip() if name.is_file() else ""


def read_database(path: Path) -> list[Found]:
    """Read each run of a database of MLflow or trackio.

    Raises:
        InvalidValue: The database cannot be read, or is of another program.
    """
    try:
        base = _open(path)
        try:
            tables = {name for (name,) in base.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if {"metrics", "runs", "experiments"} <= tables:
                runs, form = _mlflow(base), "MLflow"
            elif "metrics" in tables and {"run_name", "step", "metrics"} <= _columns(base):
                runs, form = _trackio(base), "trackio"
            else:
                said = f"a database of MLflow or trackio (its tables: {some_of(tables)})"
                raise InvalidValue("LOG", str(path), said)
            place = Place(str(path), form=form, is_chart=True)
            found = [each for name, rows in runs for each in logs_or_refusal(rows, _named(place, name))]
        finally:
            base.close()
    except sqlite3.Error as error:
        raise InvalidValue("LOG", str(path), f"a database that can be read ({error})") from None
    if not found:
        raise InvalidValue("LOG", str(path), f"a database of {form} with at least one run in it")
    return found


def _open(path: Path) -> sqlite3.Connection:
    """Open a database without writing; in a folder that cannot be written a database with a journal is immutable."""
    for way in ("mode=ro", "immutable=1"):
        base = sqlite3.connect(f"file:{quote(str(path.absolute()))}?{way}", uri=True)
        try:
            base.execute("SELECT count(*) FROM sqlite_master").fetchone()
            return base
        except sqlite3.OperationalError:
            base.close()
    raise sqlite3.OperationalError("it cannot be opened")


def _named(place: Place, name: str) -> Place:
    return Place(place.source, name=name, form=place.form, is_chart=place.is_chart)


def _columns(base: sqlite3.Connection) -> set[str]:
    return {row[1] for row in base.execute("PRAGMA table_info(metrics)")}


def _mlflow(base: sqlite3.Connection) -> Iterator[tuple[str, Rows]]:
    """Yield the runs; a database keeps infinity as the largest number, and NaN as a flag."""
    for run, name in base.execute("SELECT run_uuid, name FROM runs ORDER BY start_time").fetchall():
        rows, step = Rows(), None
        row: dict[str, float] = {}
        query = "SELECT step, key, value, is_nan FROM metrics WHERE run_uuid = ? ORDER BY step, timestamp"
        for at, key, value, is_nan in base.execute(query, (run,)):
            if at != step and row:
                rows.add({"_step": step, **row})
                row = {}
            step = at
            row[key] = math.nan if is_nan else value
        if row:
            rows.add({"_step": step, **row})
        yield name or run, rows


def _trackio(base: sqlite3.Connection) -> Iterator[tuple[str, Rows]]:
    """Yield the runs by name, and by id where runs share a name."""
    run = "run_id" if "run_id" in _columns(base) else "run_name"
    listed = base.execute(f"SELECT {run}, min(run_name) FROM metrics GROUP BY {run} ORDER BY min(id)").fetchall()
    names = [name for _, name in listed]
    for key, name in listed:
        rows = Rows()
        for step, metrics in base.execute(f"SELECT step, metrics FROM metrics WHERE {run} = ? ORDER BY id", (key,)):
            try:
                numbers = json.loads(metrics)
            except ValueError:
                continue
            if isinstance(numbers, dict):
                rows.add({"_step": step, **numbers})
        yield (name if names.count(name) == 1 else f"{name} {key}"), rows
