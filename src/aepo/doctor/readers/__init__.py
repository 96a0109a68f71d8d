"""One reader for each log format. `read` finds the reader that knows a file, or lists the formats that are known."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from aepo.doctor.readers import aepo, completions, easyr1, openrlhf, tensorboard, tinker, trl, verl, wandb
from aepo.doctor.readers.rows import LogText, load_text
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

KNOWN = (
    "a run folder of aepo or its metrics.jsonl, TRL's trainer_state.json or completions folder, verl's file logger or "
    "console, EasyR1's experiment_log.jsonl, OpenRLHF's console, tinker-cookbook's metrics.jsonl, TensorBoard events, "
    "or a W&B export (CSV or JSONL)"
)
# `read` asks them in this order; a reader returns an empty list for a file of another format.
TEXTS: tuple[Callable[[LogText], list[Log]], ...] = (
    aepo.read, easyr1.read, tinker.read, trl.read, verl.read, openrlhf.read, wandb.read,
)  # fmt: skip


def read(path: Path, resumes: Sequence[int] = ()) -> list[Log]:
    """Read the logs in a file or folder.

    Args:
        path: A log file, or a folder with logs at their usual places.
        resumes: Steps at which the run was resumed, in addition to those that the log shows.

    Returns:
        One log for each run in the file or folder.

    Raises:
        InvalidValue: The path does not exist, cannot be read, or is no known log.
    """
    if not path.exists():
        raise InvalidValue("LOG", str(path), "a file or folder that exists")
    logs = _folder(path) if path.is_dir() else _file(path)
    if not logs:
        raise InvalidValue("LOG", str(path), f"a folder with one of: {KNOWN}")
    return [dataclasses.replace(log, resumes=tuple(sorted({*log.resumes, *resumes}))) for log in logs]


def _folder(path: Path) -> list[Log]:
    """Read every log that lies in a run's folder at its usual place."""
    logs = []
    for name in ("metrics.jsonl", "experiment_log.jsonl"):
        if (path / name).is_file():
            logs.extend(_file(path / name))
    if (state := trl.newest_state(path)) is not None:
        logs.extend(_file(state))
    if files := completions.files(path):
        logs.extend(completions.read(files))
    return logs + tensorboard.read_folder(path)


def _file(path: Path) -> list[Log]:
    if completions.files(path):
        return completions.read([path])
    if tensorboard.MARK in path.name:
        return tensorboard.read([path])
    text = load_text(path)
    for reader in TEXTS:
        if logs := reader(text):
            return logs
    raise InvalidValue("LOG", str(path), f"one of: {KNOWN}")
