"""The folder of an evaluation holds settings.json, samples.jsonl and, at the end, evaluation.json.

Completions are drawn in units of fixed size. Each unit has its own generator, and its lines are written in one piece.
After a kill only whole units are missing, and drawing them again gives the same completions.
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

# The most tokens and the most completions of one unit. They limit the memory, and what a kill can lose.
UNIT_TOKENS, UNIT_ROWS = 2**19, 4096


@dataclass(frozen=True)
class Unit:
    """`Unit` is a block of completions that are drawn in one call."""

    problems: range
    """The numbers of the problems."""
    samples: range
    """The numbers of the samples; the same for each problem."""

    def __len__(self) -> int:
        return len(self.problems) * len(self.samples)


def units(problems: int, n: int, max_tokens: int) -> list[Unit]:
    """Divide n samples of each problem into units.

    A unit holds all samples of several problems, or, if n is large, a part of the samples of one problem.

    Args:
        problems: The number of problems.
        n: The number of samples of each problem.
        max_tokens: The longest completion, in tokens.
    """
    rows = max(1, min(UNIT_ROWS, UNIT_TOKENS // max_tokens))
    at_once = max(1, rows // n)
    return [
        Unit(range(first, min(first + at_once, problems)), range(start, min(start + rows, n)))
        for first in range(0, problems, at_once)
        for start in range(0, n, rows)
    ]


def open_folder(folder: Path, settings: Mapping[str, Any]) -> None:
    """Create the folder, or check that the evaluation in it has the same settings.

    Raises:
        InvalidValue: The evaluation in the folder has other settings, or the folder cannot be written or read.
    """
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
    """Yield each setting that differs: its dotted name, the old value and the new value."""
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
    """Delete everything behind the last whole unit of a file, and return how many whole units it holds.

    Args:
        path: The file of completions, one per line. A file that does not exist holds no units.
        sizes: The number of completions of each unit, in the order of the file.
    """
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
    """Append rows to a JSONL file."""
    with path.open("a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a JSONL file, one at a time.

    Raises:
        InvalidValue: A line is not JSON; it was changed after it was written.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield json.loads(line)
            except ValueError:
                raise InvalidValue(f"{path}, line {number}", _short(line), "as it was written") from None
