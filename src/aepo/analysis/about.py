"""`about` says in words what a run trained, on what and how, from its config.toml. The report and the card use it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

# Settings of the optimizer that say how the learning rate changes.
RATE = ("schedule", "warmup")


def about(config: Mapping[str, Any], short: bool = False) -> dict[str, str]:
    """Return model, data, reward and learning rate by name. What the settings do not say is left out.

    Args:
        config: The settings of a run, as its config.toml holds them.
        short: Whether a path on this machine is shown as its last part, for a text that leaves the machine.
    """
    task, optimizer = _table(config, "task"), _table(config, "optimizer")
    policy = _table(config, "policy")
    found: dict[str, str] = {}
    if "model" in config:
        rank = policy.get("lora_rank", "none")
        how = "all weights" if rank == "none" else f"LoRA of rank {rank}"
        found["model"] = f"{_name(str(config['model']), short)} ({how}, {policy.get('dtype', 'float32')})"
    if "name" in task:
        found["data"] = _data(task, _table(config, "evaluation"), short)
        found["reward"] = _reward(task, short)
    if "lr" in optimizer:
        more = [f"{name} {optimizer[name]}" for name in RATE if optimizer.get(name, 0) not in (0, "constant")]
        updates = int(optimizer.get("minibatches", 1)) * int(optimizer.get("epochs", 1))
        parts = [f"{optimizer['lr']:g}", *more, f"{updates} update{'s' * (updates > 1)} a step"]
        found["learning rate"] = ", ".join(parts)
    return found


def _data(task: Mapping[str, Any], evaluation: Mapping[str, Any], short: bool) -> str:
    if task["name"] != "data":
        names = ("dataset", "train", "level", "difficulty")
        given = [
            str(task[name]) for name in names if isinstance(task.get(name), str | int) and task.get(name) != "none"
        ]
        return f"the task {task['name']}" + f" ({', '.join(given)})" * bool(given)
    source = _name(str(task.get("train")), short)
    if evaluation.get("every", "auto") == 0:
        return f"{source}; not evaluated"
    rows, other = evaluation.get("prompts", task.get("held_out")), task.get("eval")
    return f"{source}; evaluated on {rows} rows of {_name(str(other), short) if other else 'it'}"


def _reward(task: Mapping[str, Any], short: bool) -> str:
    if task["name"] != "data":
        return "the task's own"
    names = task.get("rewards") or []
    if names:
        weights = task.get("reward_weights") or [1.0] * len(names)
        return " + ".join(f"{weight:g} {_name(name, short)}" for weight, name in zip(weights, names, strict=False))
    judge = _table(task, "verifier")
    grader = _table(judge, "grader").get("name", "")
    path = judge.get("path", "")
    return _name(str(path), short) if path else f"{judge.get('name', '?')}" + f" ({grader})" * bool(grader)


def _name(text: str, short: bool) -> str:
    """Return the text; of a path its last part if `short`. The name of a model or data set on the hub stays."""
    local = text.startswith(("/", "~", ".")) or re.match(r"[A-Za-z]:[\\/]", text) is not None
    return PurePath(text).name if short and local else text


def _table(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = config.get(name)
    return found if isinstance(found, Mapping) else {}
