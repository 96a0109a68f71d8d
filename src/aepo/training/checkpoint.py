"""Checkpoints store a run between two steps. A checkpoint is either complete or absent.

checkpoints/step-N/ holds the state after N finished steps: the model in Hugging Face format, optimizer.safetensors,
and state.json (the fields of `TrainState`). There is no random state to save: all randomness is a function of
(seed, step, purpose).
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from aepo.errors import InvalidValue
from aepo.model.policy import Policy

FOLDER = "checkpoints"


@dataclass(frozen=True)
class TrainState:
    """`TrainState` holds the state of a run between two steps, as plain JSON data."""

    step: int = 0
    """Number of finished steps."""
    position: int = 0
    """Number of problems that were taken from the training stream."""
    control: Mapping[str, Any] = field(default_factory=dict)
    """State of the control."""
    best_step: int | None = None
    """Number of finished steps at the best evaluation so far; None before the first evaluation."""
    best_score: float | None = None
    """pass@1 of the best evaluation so far; None before the first evaluation."""
    completions: int = 0
    """Number of completions sampled so far, ordinary and extra."""
    tokens: int = 0
    """Number of completion tokens sampled so far, ordinary and extra."""
    data: str = ""
    """Digest of the task's data; empty for a task that makes its problems."""


def save_checkpoint(run: Path, policy: Policy, optimizer: torch.optim.Optimizer, state: TrainState, keep: int) -> None:
    """Save a checkpoint, then delete older checkpoints.

    The files are written to a temporary folder beside the final one. When all files are on the disk, one rename moves
    the folder to its final name, step-N.

    Args:
        run: The run folder.
        policy: The policy whose model and tokenizer are saved.
        optimizer: The optimizer whose state is saved.
        state: The state of the run. Its `step` is N.
        keep: Number of newest checkpoints that are kept. The best evaluated checkpoint is kept as well.

    Raises:
        OSError: The checkpoint cannot be written. All older checkpoints still exist then.
    """
    final = run / FOLDER / f"step-{state.step}"
    partial = final.with_name(f".{final.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        policy.save(partial)
        if policy.images is not None:
            policy.images.keep(partial, set(_image_hashes(state.control)))
        save_file(_optimizer_tensors(optimizer), partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(asdict(state)))
        for file in partial.iterdir():
            _sync(file)
        partial.rename(final)
    except SafetensorError as error:
        raise OSError(errno.EIO, _first_line(error), str(final)) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _sync(final.parent)
    _prune(run, keep, state.best_step)


def _image_hashes(state: Any) -> Iterator[str]:
    """Yield the hashes of the images of rows that a control keeps: it has them in lists named `images`."""
    if isinstance(state, Mapping):
        yield from state.get("images", ())
        for value in state.values():
            yield from _image_hashes(value)
    elif isinstance(state, list):
        for value in state:
            yield from _image_hashes(value)


def load_checkpoint(folder: Path, optimizer: torch.optim.Optimizer) -> TrainState:
    """Restore the optimizer in place and return the state of the run.

    The model is not loaded here: `Policy.load(folder)` loads it.

    Raises:
        InvalidValue: The folder does not hold a complete checkpoint.
    """
    try:
        state = TrainState(**json.loads((folder / "state.json").read_text()))
        _restore_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise InvalidValue("resume", str(folder), f"a whole checkpoint ({_first_line(error)})") from None
    return state


def steps_saved(run: Path) -> list[int]:
    """Return the step numbers of the checkpoints of a run, oldest first."""
    names = (re.fullmatch(r"step-(\d+)", path.name) for path in (run / FOLDER).glob("step-*"))
    return sorted(int(name[1]) for name in names if name)


def _prune(run: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints except the newest `keep` and the best evaluated one."""
    for step in steps_saved(run)[:-keep]:
        if step != best:
            shutil.rmtree(run / FOLDER / f"step-{step}")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    return {
        f"{index}.{name}": value.contiguous()
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
    }


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    entries: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        entries.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": entries, "param_groups": optimizer.state_dict()["param_groups"]})


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
