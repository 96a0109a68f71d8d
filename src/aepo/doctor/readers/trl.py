"""Reader for TRL: `log_history` of a trainer_state.json, in the output folder or in a checkpoint."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from aepo.doctor.names import TRL, TRL_PPO, recognise
from aepo.doctor.readers.rows import LogText, flat, make_log, some_of, stepped
from aepo.doctor.types import Log
from aepo.errors import InvalidValue

STATE = "trainer_state.json"


def newest_state(folder: Path) -> Path | None:
    """Return the path of the folder's trainer_state.json, else of its last checkpoint's; None if there is neither."""
    if (folder / STATE).is_file():
        return folder / STATE
    found = [(int(match[1]), path) for path in folder.glob(f"checkpoint-*/{STATE}") if (match := _number(path))]
    return max(found)[1] if found else None


def _number(path: Path) -> re.Match[str] | None:
    return re.fullmatch(r"checkpoint-(\d+)", path.parent.name)


def read(text: LogText) -> list[Log]:
    """Return the log if the file is the state of a GRPO or PPO trainer; an empty list if it is no trainer's state.

    Raises:
        InvalidValue: The file is the state of another trainer.
    """
    document = text.document
    if not isinstance(document, dict) or not isinstance(document.get("log_history"), list):
        return []
    history = [flat(row) for row in document["log_history"] if isinstance(row, dict)]
    keys = {key for row in history for key in row}
    dialect = recognise(keys)
    if dialect is None or dialect not in (TRL, TRL_PPO):
        raise InvalidValue("LOG", str(text.path), f"the state of a GRPO or PPO trainer (its keys: {some_of(keys)})")
    return [make_log(dialect, text.path, stepped(history, "step"), resumes=_resumes(history))]


def _resumes(history: list[dict[str, Any]]) -> list[int]:
    """Return the steps that follow a `train_runtime`, which the trainer writes at the end of a session."""
    ends = [index for index, row in enumerate(history[:-1]) if "train_runtime" in row]
    steps = [history[index + 1].get("step", math.nan) for index in ends]
    return [int(step) for step in steps if math.isfinite(step)]
