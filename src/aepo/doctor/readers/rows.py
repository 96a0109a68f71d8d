"""Functions that the readers share: from a text file to rows of numbers, and from rows to a `Log`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.doctor.names import Dialect
from aepo.doctor.types import EntropyMeaning, Log, LogRow
from aepo.errors import InvalidValue

# W&B, TensorBoard callbacks and OpenRLHF's loggers put this before the keys of training. It is removed; the prefix of
# evaluation metrics stays, so that the two are not mixed.
PREFIX = "train/"
# Largest share of broken characters in a text file.
MOST_BROKEN = 0.05
# Larger numbers count as infinite, because sums of them could overflow; float32 ends at 3.4e38.
LARGEST = 1e100
# NumPy 2 and later print numbers in this form.
_WRAPPED = re.compile(r"\bnp\.\w+\(([^()]*)\)")


@dataclass(frozen=True)
class LogText:
    """`LogText` holds a text file and what it parses to."""

    path: Path
    """The path of the file."""
    text: str
    """The whole text."""
    rows: tuple[dict[str, Any], ...]
    """The objects of the lines if the file is JSON lines, else empty."""
    document: Any
    """The parsed value if the whole file is one JSON document, else None."""


def load_text(path: Path) -> LogText:
    """Read a text file, and parse it if it is JSON or JSON lines.

    Raises:
        InvalidValue: The file cannot be read, is empty or binary, or has a broken line before the last one.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InvalidValue("LOG", str(path), f"a readable file ({error.strerror})") from None
    # A console's progress bars leave a broken byte here and there.
    if text.count("\ufffd") + text.count("\0") > len(text) * MOST_BROKEN:
        raise InvalidValue("LOG", str(path), "text, Parquet or TensorBoard events (this file is binary)")
    if not text.strip():
        raise InvalidValue("LOG", str(path), "a log with at least one step in it (this one is empty)")
    document = _parsed(text)
    return LogText(path, text, () if document is not None and "\n" in text.strip() else _lines(path, text), document)


def _parsed(text: str) -> Any:
    """Parse JSON; return None if the text is no JSON or is nested too deeply.

    Whole numbers are parsed as floats, because Python refuses integers with very many digits.
    """
    try:
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def _lines(path: Path, text: str) -> tuple[dict[str, Any], ...]:
    """Parse one JSON object per line, without a last line that was cut off; empty if the first line is no object."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not isinstance(_parsed(lines[0]), dict):
        return ()
    rows = [_parsed(line) for line in lines]
    if rows[-1] is None:
        rows.pop()
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InvalidValue("LOG", str(path), f"JSON lines throughout (line {number} is not a JSON object)")
    return tuple(rows)


def number(value: Any) -> float | None:
    """Return a number or a text such as "NaN" as a float; None for any other value."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def some_of(keys: Iterable[str]) -> str:
    """Return at most six of the keys on one line, for an error message."""
    return ", ".join(" ".join(key.split()) for key in sorted(keys)[:6]) or "none"


def unwrapped(text: str) -> str:
    """Replace NumPy's printed form by the bare number: np.float64(3.8) becomes 3.8."""
    return _WRAPPED.sub(r"\1", text)


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a nested row; the key of each joins the names of its groups with /."""
    found: dict[str, float] = {}
    groups: list[tuple[str, Mapping[str, Any]]] = [("", row)]
    for prefix, group in groups:
        for key, value in group.items():
            if isinstance(value, Mapping):
                groups.append((f"{prefix}{key}/", value))
            elif (measured := number(value)) is not None:
                found[f"{prefix}{key}"] = measured
    return found


def unprefixed(rows: Iterable[LogRow]) -> list[dict[str, float]]:
    """Return the rows with `train/`, which loggers put before keys, removed."""
    return [{key.removeprefix(PREFIX): value for key, value in row.items()} for row in rows]


def stepped(rows: Sequence[LogRow], *names: str) -> list[tuple[int, LogRow]]:
    """Pair each row with its step, which is the first finite one of `names`; rows without a step are left out."""
    found = []
    for row in rows:
        step = next((row[name] for name in names if name in row and math.isfinite(row[name])), None)
        if step is not None:
            found.append((int(step), row))
    return found


def make_log(
    dialect: Dialect,
    path: Path,
    rows: Sequence[tuple[int, LogRow]],
    resumes: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    framework: str | None = None,
) -> Log:
    """Make a log under this package's names.

    If the step goes back, the run was resumed there, and the later rows replace the earlier ones.

    Args:
        dialect: The keys of the trainer.
        path: The file that the log comes from.
        rows: (step, row) in the order of the file.
        resumes: Steps at which the run was resumed, in addition to those where the step goes back.
        settings: The settings of the run, if they are known.
        framework: The name of the trainer for the report; None takes the dialect's name.

    Raises:
        InvalidValue: There are no rows, or none of them has a key that the dialect knows.
    """
    if not rows:
        raise InvalidValue("LOG", str(path), f"a log of {dialect.name} with a number as step in its rows")
    kept, restarts = _latest(rows)
    present = {key for _, row in kept for key in row}
    keys = {
        name: next(key for key in wanted if key in present)
        for name, wanted in dialect.keys.items()
        if present.intersection(wanted)
    }
    series: dict[str, dict[int, float]] = {}
    for step, row in kept:
        ours = {name: row[key] for name, key in keys.items() if key in row}
        for name, value in {**ours, **dialect.derive(ours)}.items():
            series.setdefault(name, {})[step] = math.copysign(math.inf, value) if abs(value) > LARGEST else value
    if not series:
        raise InvalidValue("LOG", str(path), f"a log of {dialect.name} with at least one of its training metrics in it")
    meaning = dialect.entropies.get(keys.get("entropy", ""), EntropyMeaning("unknown", "its meaning is not documented"))
    return Log(
        framework=framework or dialect.name,
        source=str(path),
        series={name: tuple(points.items()) for name, points in series.items()},
        keys=keys,
        entropy=meaning,
        resumes=tuple(sorted({*restarts, *resumes})),
        settings=settings or {},
    )


def _latest(rows: Sequence[tuple[int, LogRow]]) -> tuple[list[tuple[int, LogRow]], list[int]]:
    """Return the rows without those that a later part of the log repeats, and the steps at which it went back."""
    kept: list[tuple[int, LogRow]] = []
    restarts = []
    for step, row in rows:
        if kept and step < kept[-1][0]:
            restarts.append(step)
            kept = [pair for pair in kept if pair[0] < step]
        kept.append((step, row))
    return kept, restarts
