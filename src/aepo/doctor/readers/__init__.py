"""Readers: from a file, a folder or a run on W&B to one `Log` for each run in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from aepo.doctor.readers import completions, files, folders, stores, tensorboard, text, wandb
from aepo.doctor.readers.runs import KNOWN, Found
from aepo.doctor.types import Log
from aepo.errors import InvalidValue


def read(place: Path | str, resumes: Sequence[int] = ()) -> list[Log]:
    """Read the logs in a file or folder, or a run on W&B.

    Args:
        place: A log file, a folder with logs in it, or `wandb://entity/project/run`.
        resumes: Steps at which the run was resumed, in addition to those that the log shows.

    Returns:
        One log for each run.

    Raises:
        InvalidValue: The place does not exist, cannot be read, or has no known log.
    """
    logs, left_out = read_all([place], resumes)
    if not logs:
        raise left_out[0]
    return logs


def read_all(places: Iterable[Path | str], resumes: Sequence[int] = ()) -> tuple[list[Log], list[InvalidValue]]:
    """Read the logs in several places; one that cannot be read does not hide the others.

    Args:
        places: Files, folders and runs on W&B, as for `read`.
        resumes: Steps at which the runs were resumed, in addition to those that the logs show.

    Returns:
        One log for each run, and the reasons for which files or runs are left out.
    """
    found = [each for place in places for each in _place(place)]
    logs = [each for each in found if isinstance(each, Log)]
    left_out = [each for each in found if isinstance(each, InvalidValue)]
    return [dataclasses.replace(log, resumes=tuple(sorted({*log.resumes, *resumes}))) for log in logs], left_out


def _place(place: Path | str) -> list[Found]:
    try:
        if (run := wandb.remote(str(place))) is not None:
            return wandb.read_remote(run)
        path = Path(place).expanduser()
        if not path.exists():
            raise InvalidValue("LOG", str(place), "a file or folder that exists")
        if not path.is_dir():
            return _file(path)
        found = [each for parts in folders.search(path) for each in _parts(parts)]
        return found or [InvalidValue("LOG", str(path), f"a folder with {KNOWN} in it or below it")]
    except InvalidValue as error:
        return [error]


def _parts(parts: Sequence[Path]) -> list[Found]:
    """Read the files that are one log together."""
    try:
        if len(parts) == 1:
            return _file(parts[0])
        return tensorboard.read(parts) if tensorboard.MARK in parts[0].name else [*completions.read(parts)]
    except InvalidValue as error:
        return [error]


def _file(path: Path) -> list[Found]:
    if path.is_dir():
        return stores.read_mlruns(path)
    if path.suffix == ".parquet":
        return [*completions.read([path])]
    if tensorboard.MARK in path.name:
        return tensorboard.read([path])
    start = files.head(path)
    if start.startswith(files.SQLITE):
        return stores.read_database(path)
    if start.startswith(files.WANDB):
        return wandb.read_file(path)
    return text.read(path)
