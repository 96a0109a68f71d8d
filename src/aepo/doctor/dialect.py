"""`Dialect`: the keys that one trainer logs, this package's names for them, and the meaning of its entropy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aepo.doctor.types import EntropyMeaning, LogRow

SAMPLED = (
    "compare it with no exact entropy, and use it in no loss: its gradient is not an entropy bonus (docs/entropy.md)"
)
EXACT = EntropyMeaning("exact", "the exact entropy, per token")


def _derive_nothing(_: LogRow) -> LogRow:
    return {}


@dataclass(frozen=True)
class Dialect:
    """`Dialect` describes the keys of one trainer's log.

    A key has no `train/` in front, which loggers add; the readers remove it.
    """

    name: str
    """The name of the trainer."""
    marks: tuple[frozenset[str], ...]
    """Sets of keys. A log that has all keys of one set was written by this trainer."""
    keys: Mapping[str, tuple[str, ...]]
    """Name in this package -> the trainer's keys for it. The first key that the log has counts."""
    entropies: Mapping[str, EntropyMeaning] = field(default_factory=dict)
    """Entropy key of the trainer -> what it measures."""
    derive: Callable[[LogRow], LogRow] = _derive_nothing
    """A function from a row under this package's names to the measurements that follow from it."""
    derive_from: tuple[str, ...] = ()
    """The names that `derive` reads; it is called for the steps that have one of them."""
    streams: tuple[str, ...] = ()
    """The step keys of processes that log rows of their own and need not be at the same step; empty if one process
    logs everything."""


def marks(*groups: str) -> tuple[frozenset[str], ...]:
    """Return one set of keys for each text of keys with spaces between them."""
    return tuple(frozenset(group.split()) for group in groups)


def same_rewards(row: LogRow) -> LogRow:
    """Return `no_advantage`: 1 if all advantages of the batch are 0, so that all its groups are dead, else 0."""
    if "advantage_high" in row and "advantage_low" in row:
        return {"no_advantage": float(row["advantage_high"] == row["advantage_low"] == 0)}
    return {"no_advantage": float(row["reward_spread"] == 0)} if "reward_spread" in row else {}


SPREAD = ("advantage_high", "advantage_low", "reward_spread")
"""The names that `same_rewards` reads."""
