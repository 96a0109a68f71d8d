"""The run folder: its files, how they are written and read, and who may write.

config.toml, environment.json, metrics.jsonl (a row a step), samples.jsonl (a few completions a step),
evaluations.jsonl (each evaluation, problem by problem), checkpoints/. docs/metrics.md documents every key.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from aepo import __version__
from aepo.config import Config, to_toml
from aepo.errors import InvalidValue

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None  # type: ignore[assignment]

METRICS, SAMPLES, EVALUATIONS = "metrics.jsonl", "samples.jsonl", "evaluations.jsonl"
FILES = (METRICS, SAMPLES, EVALUATIONS)
# Locked while a process writes the run.
LOCKED = "config.toml"


def write_atomically(path: Path, text: str) -> None:
    """The whole text or what was there before."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


@contextmanager
def sole_writer(run: Path) -> Iterator[None]:
    """Hold the run folder; `InvalidValue` while another process does. The system lets go however this one ends."""
    with (run / LOCKED).open() as handle:
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise InvalidValue("out", str(run), "a run that no other process is writing") from None
        yield


def being_written(run: Path) -> bool:
    """Whether a process holds the run folder."""
    if not (run / LOCKED).exists():
        return False
    try:
        with sole_writer(run):
            return False
    except InvalidValue:
        return True


def environment(device: torch.device) -> dict[str, Any]:
    """What a reader needs to know to repeat a run."""
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


def start_folder(run: Path, config: Config, device: torch.device) -> None:
    """Make a new run folder; `InvalidValue` if there is a run in it already or it cannot be written."""
    if (run / METRICS).exists() or (run / "config.toml").exists():
        raise InvalidValue("out", str(run), "a new folder (there is a run in this one; go on with --resume)")
    try:
        run.mkdir(parents=True, exist_ok=True)
        write_atomically(run / "config.toml", to_toml(config))
        write_atomically(run / "environment.json", json.dumps(environment(device), indent=2))
    except OSError as error:
        raise InvalidValue("out", str(run), f"a folder that can be written ({error.strerror})") from None


def is_number(value: object) -> bool:
    """A finite int or float, and no int that is too large for a float."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def read_rows(path: Path, before: int | None = None) -> list[dict[str, Any]]:
    """The rows of a JSONL file (those of steps under `before`); none where there is no file.

    A half-written last line is left out. `InvalidValue` names file and line of any other one that is no JSON object
    with its step, and a file that cannot be read.
    """
    return [row for _, row in _numbered(path) if before is None or row["step"] < before]


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, as `read_rows`; a key may be missing, null or NaN.

    `InvalidValue` names file and line of a key that holds something else than docs/metrics.md says.
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
    """Each row with the number of its line."""
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
    """A truth value or a number that can be squared and summed; NaN and infinities are left to the readers."""
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return isinstance(value, int | float) and abs(value) < 1e100


def _are_plain(values: Iterable[object]) -> bool:
    return all(value is None or _is_plain(value) for value in values)


# What a row of metrics.jsonl may hold under the keys that anything here reads.
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
    """Drop everything logged from `step` on: the steps that a resumed run will do again.

    `InvalidValue`, and nothing is changed, where a file cannot be read (see `read_rows`).
    """
    kept = {name: read_rows(run / name, before=step) for name in FILES}
    for name, rows in kept.items():
        write_atomically(run / name, "".join(json.dumps(row) + "\n" for row in rows))


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
