"""This module saves and loads the control's state in the folder of verl's checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aepo.control.base import State
from aepo.errors import InvalidValue
from aepo.integrations.verl.settings import Chosen, get

STATE_FILE = "aepo.json"


def save(folder: Path, chosen: Chosen, step: int, state: State) -> None:
    """Write the control's state to `folder`; if the write fails, the file that was there before stays."""
    write_whole(folder / STATE_FILE, json.dumps({"control": _name(chosen), "step": step, "state": state}))


def write_whole(file: Path, text: str) -> None:
    """Write a file, whole or not at all; its folder is made if it does not exist."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)


def load(folder: Path, chosen: Chosen) -> State:
    """Return the control's state in `folder`, or a new state if `aepo.new_state` is set.

    Raises:
        InvalidValue: The folder has no state, or the state of another control.
    """
    control = chosen.algorithm.control
    if chosen.new_state:
        return control.initial_state()
    file, otherwise = folder / STATE_FILE, "aepo.new_state=true begins with a new state"
    if not file.exists():
        raise InvalidValue("trainer.resume_mode", str(folder), f"a folder with {STATE_FILE}; {otherwise}")
    saved = json.loads(file.read_text())
    if saved["control"] != _name(chosen):
        wanted = f"one with the control {saved['control']}, as in {file}; {otherwise}"
        raise InvalidValue("aepo.method", chosen.method, wanted)
    state: State = saved["state"]
    return state


def resumed_folder(config: Any) -> Path | None:
    """Return the folder of the checkpoint that verl resumes from by this configuration; None if it begins anew."""
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    mode = get(config, "trainer.resume_mode")
    if mode == "resume_path":
        return Path(get(config, "trainer.resume_from_path")).absolute()
    found = find_latest_ckpt_path(str(Path(get(config, "trainer.default_local_dir")).absolute()))
    return Path(found) if found and mode == "auto" else None


def _name(chosen: Chosen) -> str:
    """Return the names of the controls that the state belongs to, joined by `+`."""
    return "+".join(part.name for part in chosen.algorithm.control.parts)
