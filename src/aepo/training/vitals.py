"""`death` tells from the rows of metrics.jsonl that a run cannot learn anything any more."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

# Steps in a row after which a run is dead: no finite gradient, no reward, and an entropy without any choice left.
GRADIENTS, REWARDS, ENTROPIES = 3, 3, 20
# Steps whose rows are needed.
MEMORY = max(GRADIENTS, REWARDS, ENTROPIES)
# An entropy this close to 0 or to ln V, in nats, is that of a policy that always or never chooses.
ENTROPY_MARGIN = {"zero": 1e-4, "uniform": 1e-3}


def death(rows: Sequence[Mapping[str, Any]], vocabulary: int) -> tuple[int, str] | None:
    """Return the first dead step and what is wrong with it, or None for a run that lives.

    Args:
        rows: The newest rows of metrics.jsonl, oldest first.
        vocabulary: The number of tokens of the vocabulary.
    """
    for steps, words, sign in _signs(vocabulary):
        last = rows[-steps:]
        if len(last) == steps and all(sign(row) for row in last):
            return last[0]["step"], f"{words} in {steps} steps in a row"
    return None


def sick(row: Mapping[str, Any], vocabulary: int) -> bool:
    """Return whether one step looks like a step of a dead run. No checkpoint is written after it."""
    return any(sign(row) for _, _, sign in _signs(vocabulary))


def _signs(vocabulary: int) -> list[tuple[int, str, Callable[[Mapping[str, Any]], bool]]]:
    """Return for each sign of death: the steps in a row that prove it, the words, and the test of one row."""
    uniform = math.log(vocabulary)
    return [
        (GRADIENTS, "no update had a finite gradient", _without_gradient),
        (REWARDS, "no completion got a reward", lambda row: row.get("reward") is None),
        (
            ENTROPIES,
            "the entropy is 0 and all groups have equal rewards, so there is nothing left to learn from",
            lambda row: _entropy(row) < ENTROPY_MARGIN["zero"] and row.get("dead_groups") == 1,
        ),
        (
            ENTROPIES,
            f"the entropy is ln V = {uniform:.3f} nats: the policy draws every token with equal chance",
            lambda row: abs(_entropy(row) - uniform) < ENTROPY_MARGIN["uniform"],
        ),
    ]


def _without_gradient(row: Mapping[str, Any]) -> bool:
    updates = row.get("updates")
    return bool(updates) and row.get("updates_skipped") == updates


def _entropy(row: Mapping[str, Any]) -> float:
    found = row.get("entropy")
    return math.nan if found is None else float(found)
