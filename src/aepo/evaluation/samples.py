"""The folder of an evaluation: settings.json, samples.jsonl as it grows, and evaluation.json at the end.

Completions are drawn in units of fixed size, each from a generator of its own, and a unit's lines are written in one
go. So what is missing after a kill is whole units, and drawing them again gives what would have been.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from aepo.errors import InvalidValue
from aepo.training.folder import write_atomically

SETTINGS, SAMPLES, RESULT = "settings.json", "samples.jsonl", "evaluation.json"

# Tokens that one unit may hold, and its most completions: often enough on the disk, and bounded in memory.
UNIT_TOKENS, UNIT_ROWS = 2**19, 4096


@dataclass(frozen=True)
class Unit:
    """Samples `samples` of problems `problems`, drawn in one call."""

    problems: range
    samples: range

    def __len__(self) -> int:
        return len(self.problems) * len(self.samples)


def units(problems: int, n: int, max_tokens: int) -> list[Unit]:
    """n samples of each problem: several problems at a time, or where n is large, some samples of one."""
    rows = max(1, min(UNIT_ROWS, UNIT_TOKENS // max_tokens))
    at_once = max(1, rows // n)
    return [
        Unit(range(first, min(first + at_once, problems)), range(start, min(start + rows, n)))
        for first in range(0, problems, at_once)
        for start in range(0, n, rows)
    ]


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Make it, or check that the evaluation in it has these very settings; `InvalidValue` if not."""
    file = folder / SETTINGS
    plain = json.loads(json.dumps(settings))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not file.exists() and not (folder / SAMPLES).exists():
            write_atomically(file, json.dumps(plain, indent=2))
        known = json.loads(file.read_text())
    except OSError as error:
        reason = f"{error.strerror}: {error.filename}"
        raise InvalidValue("--out", str(folder), f"a new folder that can be written ({reason})") from None
    except ValueError:
        raise InvalidValue("--out", str(folder), f"a new folder ({SETTINGS} in it cannot be read)") from None
    for name, old, new in _differences(known, plain):
        wanted = f"a new folder: the evaluation in it has {name} = {_short(old)}, this one {_short(new)}"
        raise InvalidValue("--out", str(folder), wanted)


def _differences(old: Any, new: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The settings that are not the same, by their dotted names."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in {**old, **new}:
            yield from _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{name}[{number}]")
    elif old != new:
        yield name, old, new


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def cut_to_whole_units(path: Path, sizes: Sequence[int]) -> int:
    """How many units the file holds from the start on; what is behind the last whole one is cut off."""
    if not path.exists():
        return 0
    done = kept = 0
    with path.open("rb") as lines:
        for size in sizes:
            unit = list(islice(lines, size))
            if len(unit) < size or not unit[-1].endswith(b"\n"):
                break
            done, kept = done + 1, kept + sum(map(len, unit))
    if kept < path.stat().st_size:
        os.truncate(path, kept)
    return done


def append(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add lines."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines, one at a time; `InvalidValue` for one that was changed since."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InvalidValue(f"{path}, line {number}", _short(line), "as it was written") from None
