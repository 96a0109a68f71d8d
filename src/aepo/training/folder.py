"""The run folder holds the files of a run. This module writes and reads them, and lets only one process write.

The files: config.toml, environment.json, metrics.jsonl (one row for each step), samples.jsonl (a few completions of
each step), evaluations.jsonl (each evaluation, problem by problem), and the folder checkpoints/. docs/metrics.md
documents every key.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aepo import __version__
from aepo.config import Config, to_toml
from aepo.doctor.live import FILE as DOCTOR
from aepo.errors import InvalidValue, require

try:
    import fcntl
except ImportError:  # Windows has no fcntl.
    fcntl = None  # type: ignore[assignment]

METRICS, SAMPLES, EVALUATIONS = "metrics.jsonl", "samples.jsonl", "evaluations.jsonl"
FILES = (METRICS, SAMPLES, EVALUATIONS)
# The file that a process locks while it writes the run.
LOCKED = ".lock"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that it holds either the whole new text or its old content."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def check_folder(field: str, folder: Path) -> None:
    """Check that a folder can be made or written, before the work starts. Nothing is made.

    Raises:
        InvalidValue: The folder, or what stands where a folder above it would be, is a file or cannot be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    require(there.is_dir() and os.access(there, os.W_OK), field, str(folder), "a folder that can be written")


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Hold the lock of a run folder inside a `with` block.

    The operating system releases the lock when the process ends, even if it is killed.

    Raises:
        InvalidValue: Another process holds the lock.
    """
    with (run / LOCKED).open("a") as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InvalidValue("out", str(run), "a run that no other process is writing") from None
        yield


def being_written(run: Path) -> bool:
    """Return whether a process holds the lock of the run folder."""
    if not (run / LOCKED).exists():
        return False
    try:
        with sole_writer(run):
            return False
    except InvalidValue:
        return True


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a reader needs to know to repeat a run: versions, threads, device, machine and command."""
    packages = ("torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {
        "aepo": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "device": str(device),
        "machine": platform.machine(),
        "command": sys.argv,
    }


@contextmanager
def new_folder(run: Path, config: Config) -> Iterator[None]:
    """Create a run folder with config.toml, and hold its lock inside a `with` block.

    A folder without a finished step is used again. If the block refuses a value before the first step, a folder that
    was created here is removed again.

    Raises:
        InvalidValue: The folder holds a run with a finished step, or it cannot be written.
    """
    if read_rows(run / METRICS):
        raise InvalidValue(
            "out", str(run), f"a new folder: there is a run in this one; go on with: aepo train --resume {run}"
        )
    existed = run.exists()
    with ExitStack() as stack:
        try:
            run.mkdir(parents=True, exist_ok=True)
            stack.enter_context(sole_writer(run))
            for name in FILES:
                (run / name).unlink(missing_ok=True)
            write_config(run, config)
        except OSError as error:
            raise InvalidValue("out", str(run), f"a folder that can be written ({error.strerror})") from None
        try:
            yield
        except InvalidValue:
            if not existed and not read_rows(run / METRICS):
                shutil.rmtree(run)
            raise


def write_config(run: Path, config: Config) -> None:
    """Write config.toml into the run folder."""
    write_atomically(run / "config.toml", to_toml(config))


def write_environment(run: Path, device: torch.device) -> None:
    """Write environment.json into the run folder."""
    write_atomically(run / "environment.json", json.dumps(environment(device), indent=2))


def write_change(run: Path, config: Config, step: int, settings: Sequence[str]) -> None:
    """Rewrite config.toml, and append to changes.jsonl after which step which settings changed."""
    line = json.dumps({"after_step": step, "settings": list(settings), "command": sys.argv})
    with (run / "changes.jsonl").open("a") as file:
        file.write(f"{line}\n")
    write_config(run, config)


def is_number(value: object) -> bool:
    """Return whether a value is a finite int or float. An int that is too large for a float is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_rows(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file. A half-written last line is left out.

    Args:
        path: The file. If it does not exist, there are no rows.
        up_to: Only rows up to this step are returned; None returns all rows.

    Raises:
        InvalidValue: The file cannot be read, or a line before the last is not a JSON object with its step. The message
            names the file and the line.
    """
    return [row for _, row in _numbered(path) if up_to is None or row["step"] <= up_to]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's metrics.jsonl as `read_rows` does, and check their values.

    A key may be missing, null or NaN.

    Raises:
        InvalidValue: `read_rows` raises it, or a key holds another kind of value than docs/metrics.md says. The message
            names the file and the line.
    """
    rows = []
    for number, row in _numbered(run / METRICS):
        for key, (wanted, fits) in KINDS.items():
            value = row.get(key)
            if value is not None and not fits(value):
                raise InvalidValue(f"{run / METRICS}, line {number}, {key}", _short(value), f"{wanted}, or left out")
        rows.append(row)
    return rows


def _numbered(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a JSONL file with its line number."""
    try:
        text = path.read_text("utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidValue("RUN", str(path), f"a file that can be read ({error})") from None
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == lines[-1][0]:
                return
            row = None
        if not isinstance(row, dict) or type(row.get("step")) is not int or not 0 <= row["step"] < 2**63:
            wanted = "a JSON object with its step (only the last line may be half-written)"
            raise InvalidValue(f"{path}, line {number}", _short(line), wanted)
        yield number, row


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_plain(value: object) -> bool:
    """Return whether a value is a truth value or a number that can be squared and summed.

    NaN and infinities are accepted; the readers handle them.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return isinstance(value, int | float) and abs(value) < 1e100


def _are_plain(values: Iterable[object]) -> bool:
    return all(value is None or _is_plain(value) for value in values)


# For each key of metrics.jsonl that this package reads: the kind of value in words, and the function that checks it.
KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(
        (
            *("entropy", "target_entropy", "error", "command", "saturated", "alarm", "reward", "dead_groups"),
            *("length", "truncated", "mismatch", "reward_failures", "extra_completions", "extra_used"),
            *("extra_temperature", "completions", "tokens", "seconds", "seconds_cpu"),
        ),
        ("a number", _is_plain),
    ),
    "entropy_by_position": ("a list of numbers", lambda value: isinstance(value, list) and _are_plain(value)),
    "evaluation": ("a table of numbers", lambda value: isinstance(value, dict) and _are_plain(value.values())),
}


def cut_back(run: Path, step: int) -> None:
    """Delete everything that was logged after `step`. A resumed run does these steps again.

    A run that begins again also evaluates the base model again, so nothing is kept at step 0.

    Raises:
        InvalidValue: A file cannot be read (see `read_rows`), or the run is of version 0.1, which counted steps from 0.
            No file is changed then.
    """
    files = [*FILES, *([DOCTOR] if (run / DOCTOR).exists() else [])]
    kept = {name: read_rows(run / name, up_to=step) for name in files}
    if kept[METRICS] and kept[METRICS][0]["step"] == 0:
        raise InvalidValue("resume", str(run), "a run of this version (version 0.1 counted steps from 0)")
    for name, rows in kept.items():
        write_atomically(run / name, "".join(json.dumps(row) + "\n" for row in rows) if step else "")


def cpu_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
