"""The logs in a folder and below it: of a run the newest state, and of a trainer's own files the one with the steps."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from aepo.doctor.readers import files
from aepo.doctor.readers.stores import MLFLOW_RUN
from aepo.doctor.readers.tensorboard import MARK

STATE = "trainer_state.json"
ENDINGS = {".jsonl", ".log", ".out", ".txt", ".csv", ".tsv", ".db", ".sqlite", ".sqlite3", ".wandb"}
"""The endings of the files that are tried. A .json file is tried if rows with steps begin in it."""
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_STEPS = re.compile(rb'"log_history"|^\s*\[\s*\{[^{}]*"(?:global_)?step"')
# Files that lie beside logs and are none: what completions say, what was installed, and the log of W&B's own client.
_NO_LOGS = re.compile(
    r"(?:requirements|vocab|merges|added_tokens)\.txt|debug(?:-internal|-core|-cli.*)?\.log|generations\.log|"
    r"(?:doctor|samples|evaluations)\.jsonl"
)


def search(folder: Path) -> Iterator[Sequence[Path]]:
    """Yield the files of each log in the folder and below it; several files can be one log."""
    for where, inner, names in os.walk(folder):
        here = Path(where)
        state = _newest_state(here, inner, names)
        inner[:] = sorted(name for name in inner if not _CHECKPOINT.fullmatch(name) and not name.startswith("."))
        if MLFLOW_RUN.issubset([*inner, *names]):
            inner.clear()
            yield [here]
            continue
        own = sorted(name for name in names if name.endswith(".wandb"))
        if own:
            # The other files in such a folder repeat what its history has.
            inner.clear()
            names = own
        yield from _logs(here, names, state)


def _logs(here: Path, names: Sequence[str], state: Path | None) -> Iterator[Sequence[Path]]:
    paths = [here / name for name in sorted(names) if name != STATE and not _NO_LOGS.fullmatch(name)]
    events = [path for path in paths if MARK in path.name]
    completions = [path for path in paths if path.name.startswith("completions_") and path.suffix == ".parquet"]
    singles = [path for path in paths if path not in events and _is_tried(path)]
    if state is not None:
        yield [state]
    for path in singles:
        yield [path]
    for parts in (completions, events):
        if parts:
            yield parts


def _newest_state(here: Path, inner: Sequence[str], names: Sequence[str]) -> Path | None:
    """Return the folder's trainer_state.json, else that of its last checkpoint; None if there is neither."""
    if STATE in names:
        return here / STATE
    found = [(int(match[1]), here / name / STATE) for name in inner if (match := _CHECKPOINT.fullmatch(name))]
    return max(((number, path) for number, path in found if path.is_file()), default=(0, None))[1]


def _is_tried(path: Path) -> bool:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in files.PACKED:
        suffixes.pop()
    if not path.is_file() or not suffixes:
        return False
    if suffixes[-1] == ".json":
        return bool(_STEPS.search(files.head(path)))
    return suffixes[-1] in ENDINGS
