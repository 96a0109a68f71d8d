"""From the rows of a file to its runs, and from a run to a `Log`."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from aepo.doctor.dialect import Dialect
from aepo.doctor.names import AEPO, EASYR1, STEPS, VERL, recognise, recognise_one_metric
from aepo.doctor.readers.rows import Column, Rows, plain, some_of
from aepo.doctor.types import EntropyMeaning, Log, LogSeries, Series
from aepo.errors import InvalidValue

Found = Log | InvalidValue
"""A log, or the reason why a run or a file is left out."""
KNOWN = "a log of a trainer that docs/doctor.md lists"
# Larger numbers count as infinite, because sums of them could overflow; float32 ends at 3.4e38.
LARGEST = 1e100
OF_WANDB = {*STEPS, "_runtime", "_timestamp"}
# Learning rates at the same step that differ by a larger share come from different settings.
SAME_RATE = 0.01
# Processes that write one log can be so many steps apart: the sampler is ahead of the trainer.
SLACK = 2
# The step of a row that is in no run.
_NONE = -(1 << 63)
UNDOCUMENTED = EntropyMeaning("unknown", "its meaning is not documented")


@dataclass(frozen=True)
class Place:
    """`Place` says where rows come from."""

    source: str
    """The path of the file."""
    name: str = ""
    """The name of the run, if the file names its runs."""
    form: str = ""
    """The form of the file if it is not the trainer's own, such as W&B."""
    is_chart: bool = False
    """True if one metric is enough: charts are exported metric by metric."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The settings of the run, if the file has them."""
    notes: tuple[str, ...] = ()
    """What was left out of the file."""


def make_logs(rows: Rows, place: Place) -> list[Log]:
    """Return one log for each run in the rows; an empty list if no known trainer writes these keys.

    Raises:
        InvalidValue: A known trainer wrote the rows, and they have no step, or no metric that is read.
    """
    dialect = _dialect(rows, place.is_chart)
    if dialect is None:
        return []
    keys = {
        name: next(key for key in wanted if key in rows.measured)
        for name, wanted in dialect.keys.items()
        if rows.measured.intersection(wanted)
    }
    where = f"{place.source} ({place.name})" if place.name else place.source
    if not keys:
        read = some_of(key for wanted in dialect.keys.values() for key in wanted)
        wanted = f"a log of {dialect.name} with at least one of its training metrics in it, such as {read}"
        raise InvalidValue("LOG", where, wanted)
    walk = _Walk(rows, dialect, set(keys.values()))
    if not walk.runs:
        raise InvalidValue("LOG", where, f"a log of {dialect.name} with a number as step in its rows")
    logs = [_log(rows, dialect, keys, place, run, walk.steps) for run in walk.runs]
    if len(logs) == 1:
        return logs
    return [replace(log, source=_numbered(log.source, at)) for at, log in enumerate(logs, start=1)]


def logs_or_refusal(rows: Rows, place: Place, wanted: str = KNOWN) -> list[Found]:
    """Return the logs of one run of several, or the reason why it has none, so that the others are read."""
    try:
        logs = make_logs(rows, place)
    except InvalidValue as error:
        return [error]
    where = f"{place.source} ({place.name})" if place.name else place.source
    return [*logs] or [InvalidValue("LOG", where, f"{wanted} (its keys: {some_of(rows.names)})")]


def _numbered(source: str, run: int) -> str:
    return f"{source[:-1]}, run {run})" if source.endswith(")") else f"{source} (run {run})"


def _dialect(rows: Rows, is_chart: bool) -> Dialect | None:
    dialect = recognise(rows.measured)
    if dialect is None and is_chart:
        dialect = recognise_one_metric(rows.measured)
    # verl nests under one key, `data`; EasyR1 nests at the slashes of its keys.
    if rows.groups & {"actor", "critic", "response_length"} and (dialect is VERL or dialect is None):
        return EASYR1
    return dialect


@dataclass
class _Run:
    """One run: the rows of the file that can be in it, and the steps at which it was resumed."""

    first_row: int
    end_row: int
    resumes: list[int] = field(default_factory=list)


class _Walk:
    """`_Walk` goes through the rows once, and finds out where runs begin and where they were resumed.

    A run is resumed where its steps go back, but not to their start; what was done again counts. It is another run if
    the steps go back to the start, or if the learning rate at a step that was done twice differs.
    """

    def __init__(self, rows: Rows, dialect: Dialect, read: set[str]) -> None:
        self.rates = rows.columns.get(_read_as(dialect, rows, "learning_rate"), Column())
        self.runs: list[_Run] = []
        self.steps = array("q", [_NONE]) * rows.count
        self.slack = SLACK if dialect.streams else 0
        ends = iter(sorted(rows.ends))
        end = next(ends, None)
        for row, stream, step in _stepped(rows, dialect, read):
            ended = False
            while end is not None and end <= row:
                ended, end = True, next(ends, None)
            self._place(row, stream, step, ended)

    def _place(self, row: int, stream: str, step: int, ended: bool) -> None:
        done = self.done.setdefault(stream, array("q")) if self.runs else array("q")
        last = self.steps[done[-1]] if done else None
        goes_back = last is not None and step < last - self.slack
        if not self.runs or (goes_back and self._is_new(stream, step, row)):
            self._begin(row, stream)
        elif goes_back:
            while done and self.steps[done[-1]] >= step:
                self.steps[done.pop()] = _NONE
            if stream == self.first_stream:
                self.runs[-1].resumes.append(step)
        elif ended and last is not None and step > last:
            self.runs[-1].resumes.append(step)
        self.done[stream].append(row)
        self.steps[row] = step
        self.runs[-1].end_row = row + 1
        begins = self.begins.setdefault(stream, [])
        if len(begins) < 2 and step not in begins:
            begins.append(step)

    def _begin(self, row: int, stream: str) -> None:
        self.runs.append(_Run(row, row + 1))
        self.done: dict[str, array[int]] = {stream: array("q")}
        self.begins: dict[str, list[int]] = {}
        self.first_stream = stream

    def _is_new(self, stream: str, step: int, row: int) -> bool:
        """Return whether a row whose step goes back begins another run."""
        first, *later = self.begins[stream]
        interval = later[0] - first if later else 1
        # A log that begins in the middle is of a resumed run: it can go back to its first step, which is no start.
        if step <= max(first, 1) and step <= max(interval, 1):
            return True
        done = self.done[stream]
        again = bisect_left(done, step, key=self.steps.__getitem__)
        if again == len(done) or self.steps[done[again]] != step:
            return False
        before, now = _at(self.rates, done[again]), _at(self.rates, row)
        return before is not None and now is not None and not math.isclose(before, now, rel_tol=SAME_RATE)


def _at(column: Column, row: int) -> float | None:
    at = bisect_left(column.rows, row)
    return column.values[at] if at < len(column.rows) and column.rows[at] == row else None


def _read_as(dialect: Dialect, rows: Rows, name: str) -> str:
    return next((key for key in dialect.keys.get(name, ()) if key in rows.measured), "")


def _stepped(rows: Rows, dialect: Dialect, read: set[str]) -> Iterator[tuple[int, str, int]]:
    """Yield (row, step name, step) of the rows that have a metric and a step, in the order of the file."""
    measured = _measured(rows, read)
    found, counts = {}, {}
    for name in STEPS:
        if name not in rows.measured:
            continue
        steps = array("d", [math.nan]) * rows.count
        for row, step in zip(rows.columns[name].rows, rows.columns[name].values, strict=True):
            if measured[row] and math.isfinite(step):
                steps[row] = step
        found[name], counts[name] = steps, sum(not math.isnan(step) for step in steps)
    streams = [name for name in dialect.streams if counts.get(name)]
    if not streams and found:
        # Different names count steps differently, so they are never mixed: the first that half of the rows have counts,
        # else the commonest.
        half = sum(measured) / 2
        streams = [max(found, key=lambda name: min(counts[name], half))]
    for row in range(rows.count):
        for stream in streams:
            if not math.isnan(found[stream][row]):
                yield row, stream, int(found[stream][row])
                break


def _measured(rows: Rows, read: set[str]) -> bytearray:
    """Return for each row whether it has one of the trainer's metrics.

    A history that was exported as a table has NaN in its gaps: in a row that logs something else, all metrics of the
    trainer are NaN. Such a row has none. A chart leaves its gaps empty.
    """
    names = {plain(name) for name in rows.names}
    has_gaps = "_step" in names and bool(names - read - OF_WANDB)
    found = bytearray(rows.count)
    for key in read:
        column = rows.columns[key]
        for row, value in zip(column.rows, column.values, strict=True):
            if not has_gaps or not math.isnan(value):
                found[row] = 1
    return found


def _log(rows: Rows, dialect: Dialect, keys: Mapping[str, str], place: Place, run: _Run, steps: array[int]) -> Log:
    series: dict[str, LogSeries] = {}
    clock = array("q")
    for name, key in keys.items():
        points = _series(rows.columns[key], run, steps)
        if points:
            clock = points.steps = clock if points.steps == clock else points.steps
            series[name] = points
    series |= _derived(dialect, series)
    return Log(
        framework=f"{dialect.name} ({place.form})" if place.form else dialect.name,
        source=f"{place.source} ({place.name})" if place.name else place.source,
        series=series,
        keys={name: rows.written[key] for name, key in keys.items() if name in series},
        entropy=dialect.entropies.get(keys.get("entropy", ""), UNDOCUMENTED),
        resumes=tuple(sorted(set(run.resumes))),
        settings=place.settings if dialect is AEPO else {},
        notes=place.notes,
    )


def _series(column: Column, run: _Run, steps: array[int]) -> Series:
    """Return the points of one key in one run; of several at one step the last counts."""
    found, values = array("q"), array("d")
    is_sorted = True
    for at in range(bisect_left(column.rows, run.first_row), bisect_left(column.rows, run.end_row)):
        step, value = steps[column.rows[at]], column.values[at]
        if step == _NONE:
            continue
        if abs(value) > LARGEST:
            value = math.copysign(math.inf, value)
        if found and step <= found[-1]:
            if step == found[-1]:
                values[-1] = value
                continue
            is_sorted = False
        found.append(step)
        values.append(value)
    if is_sorted:
        return Series(found, values)
    latest = sorted(dict(zip(found, values, strict=True)).items())
    return Series(array("q", (step for step, _ in latest)), array("d", (value for _, value in latest)))


def _derived(dialect: Dialect, series: Mapping[str, LogSeries]) -> dict[str, LogSeries]:
    """Return what the dialect derives, for the steps at which the first of its sources in the log has a value."""
    sources = {name: series[name] for name in dialect.derive_from if name in series}
    found: dict[str, tuple[array[int], array[float]]] = {}
    for step, row in _together(sources):
        for name, value in dialect.derive(row).items():
            at, values = found.setdefault(name, (array("q"), array("d")))
            at.append(step)
            values.append(value)
    return {name: Series(*columns) for name, columns in found.items()}


def _together(series: Mapping[str, LogSeries]) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield the step and the values of all series at each step of the first."""
    first = next(iter(series.values()), ())
    others = {name: dict(points) for name, points in list(series.items())[1:]}
    for step, value in first:
        yield step, {next(iter(series)): value, **{name: at[step] for name, at in others.items() if step in at}}


def seen(rows: Sequence[Rows]) -> str:
    """Return some key names of rows that no trainer is known by, for the message that refuses them."""
    return some_of({name for each in rows for name in each.names})
