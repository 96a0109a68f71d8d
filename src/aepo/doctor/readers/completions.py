"""Reader for the files of TRL's log_completions: completions/completions_00001.parquet, one row per completion."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aepo.doctor.readers.rows import some_of
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

COLUMNS = {"step", "prompt", "completion", "advantage"}


def files(path: Path) -> list[Path]:
    """Return the Parquet files that a path stands for: the path itself, or the files of a completions folder in it."""
    if path.suffix == ".parquet":
        return [path]
    return sorted(path.glob("completions_*.parquet")) or sorted(path.glob("completions/completions_*.parquet"))


def read(paths: Sequence[Path]) -> list[Log]:
    """Return one log with two series per step, both means over the step's prompts.

    `dead_groups` is the share of prompts whose advantages are all 0. `distinct` is the number of different completions
    of a prompt divided by the number of its completions.
    """
    source = str(paths[0] if len(paths) == 1 else paths[0].parent)
    groups: dict[int, dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for path in paths:
        for row in _rows(path):
            groups[int(row["step"])][str(row["prompt"])].append(row)
    dead = {step: _mean([_is_dead(group) for group in of.values()]) for step, of in groups.items()}
    distinct = {step: _mean([_distinct(group) for group in of.values()]) for step, of in groups.items()}
    series = {"dead_groups": tuple(sorted(dead.items())), "distinct": tuple(sorted(distinct.items()))}
    keys = {"dead_groups": "advantage", "distinct": "completion"}
    return [Log(framework="TRL completions", source=source, series=series, keys=keys)]


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet
    except ModuleNotFoundError:
        raise InvalidValue("LOG", str(path), "read with pyarrow: pip install 'aepo[doctor]'") from None
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise InvalidValue("LOG", str(path), f"a Parquet file ({str(error).splitlines()[0]})") from None
    if not set(table.column_names) >= COLUMNS or table.num_rows == 0:
        wanted = f"TRL's completions, with {some_of(COLUMNS)} (it has {some_of(table.column_names)})"
        raise InvalidValue("LOG", str(path), wanted)
    rows = [row for row in table.select(sorted(COLUMNS)).to_pylist() if _has_step(row)]
    if not rows:
        raise InvalidValue("LOG", str(path), "TRL's completions, with a number as step")
    return rows


def _has_step(row: Mapping[str, Any]) -> bool:
    return isinstance(row["step"], int | float) and math.isfinite(row["step"])


def _is_dead(group: Sequence[Mapping[str, Any]]) -> float:
    return float(all(row["advantage"] == 0 for row in group))


def _distinct(group: Sequence[Mapping[str, Any]]) -> float:
    return len({str(row["completion"]) for row in group}) / len(group)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
