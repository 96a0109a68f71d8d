"""What the readers share: text to rows of numbers, rows to a `Log`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aepo.doctor.names import Dialect
from aepo.doctor.types import Entropy, Log
from aepo.errors import InvalidValue

Row = Mapping[str, float]
# Of W&B, TensorBoard callbacks and OpenRLHF's loggers; evaluation metrics keep theirs and so stay apart.
PREFIX = "train/"
# Of a text's characters.
MOST_BROKEN = 0.05
# Larger numbers are infinite to the checks, whose sums they would overflow; float32 ends at 3.4e38.
LARGEST = 1e100
# NumPy from version 2 on prints its numbers so.
_WRAPPED = re.compile(r"\bnp\.\w+\(([^()]*)\)")


@dataclass(frozen=True)
class Text:
    """A text file. rows: its objects if it is JSON lines, else none. document: the object that it is as a whole."""

    path: Path
    text: str
    rows: tuple[dict[str, Any], ...]
    document: Any


def load(path: Path) -> Text:
    """Read; `InvalidValue` where there is nothing in it, no text, or JSON lines that break off before the last."""
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
    return Text(path, text, () if document is not None and "\n" in text.strip() else _lines(path, text), document)


def _parsed(text: str) -> Any:
    """None for what is no JSON, or nested too deep for it. Whole numbers are floats, which have no most digits."""
    try:
        return json.loads(text, parse_int=float)
    except (ValueError, RecursionError):
        return None


def _lines(path: Path, text: str) -> tuple[dict[str, Any], ...]:
    """Objects, one a line; a last line that was cut off is left out."""
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
    """A measurement; text such as "NaN" counts, other text and lists do not."""
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return None


def some_of(keys: Iterable[str]) -> str:
    """A few of them, on one line, for a refusal."""
    return ", ".join(" ".join(key.split()) for key in sorted(keys)[:6]) or "none"


def unwrapped(text: str) -> str:
    """Printed numbers without NumPy's type around them: 3.8 for np.float64(3.8)."""
    return _WRAPPED.sub(r"\1", text)


def flat(row: Mapping[str, Any]) -> dict[str, float]:
    """Nested groups joined by /, numbers only."""
    found: dict[str, float] = {}
    groups: list[tuple[str, Mapping[str, Any]]] = [("", row)]
    for prefix, group in groups:
        for key, value in group.items():
            if isinstance(value, Mapping):
                groups.append((f"{prefix}{key}/", value))
            elif (measured := number(value)) is not None:
                found[f"{prefix}{key}"] = measured
    return found


def unprefixed(rows: Iterable[Row]) -> list[dict[str, float]]:
    """Keys without the train/ that loggers put before them."""
    return [{key.removeprefix(PREFIX): value for key, value in row.items()} for row in rows]


def stepped(rows: Sequence[Row], *names: str) -> list[tuple[int, Row]]:
    """Rows with their step, by the first of `names` that a row has; rows without one are left out."""
    found = []
    for row in rows:
        step = next((row[name] for name in names if name in row and math.isfinite(row[name])), None)
        if step is not None:
            found.append((int(step), row))
    return found


def make_log(
    dialect: Dialect,
    path: Path,
    rows: Sequence[tuple[int, Row]],
    resumes: Sequence[int] = (),
    settings: Mapping[str, Any] | None = None,
    framework: str | None = None,
) -> Log:
    """The log in our names. Where the step goes back, the run was resumed: what it did again counts.

    Raises `InvalidValue` when there are no rows, or nothing of what the dialect knows is in them.
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
    meaning = dialect.entropies.get(keys.get("entropy", ""), Entropy("unknown", "its meaning is not documented"))
    return Log(
        framework=framework or dialect.name,
        source=str(path),
        series={name: tuple(points.items()) for name, points in series.items()},
        keys=keys,
        entropy=meaning,
        resumes=tuple(sorted({*restarts, *resumes})),
        settings=settings or {},
    )


def _latest(rows: Sequence[tuple[int, Row]]) -> tuple[list[tuple[int, Row]], list[int]]:
    """Rows without those that a later part of the log did again, and the steps it started over from."""
    kept: list[tuple[int, Row]] = []
    restarts = []
    for step, row in rows:
        if kept and step < kept[-1][0]:
            restarts.append(step)
            kept = [pair for pair in kept if pair[0] < step]
        kept.append((step, row))
    return kept, restarts
