"""`Rows` collects the rows of a log in columns, and keeps of a row only the numbers under known names."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Mapping
from typing import Any

from aepo.doctor.names import known_keys

# W&B, TensorBoard callbacks and OpenRLHF's loggers put this before the keys of training. It is removed; the prefix of
# evaluation metrics stays, so that the two are not mixed.
PREFIX = "train/"
# The names of a file's keys are kept for the message that refuses it, up to this many.
MOST_NAMES = 2000
# A trainer writes this at the end of a session: transformers, and with it TRL, Unsloth and ms-swift.
ENDS = "train_runtime"
# NumPy 2 and later, and PyTorch, print numbers in this form.
_WRAPPED = re.compile(r"\b(?:np\.\w+|tensor)\(([^(),]*)(?:,[^()]*)?\)")


class Column:
    """`Column` holds the numbers of one key, and the rows that they stand in."""

    __slots__ = ("rows", "values")

    def __init__(self) -> None:
        self.rows = array("L")
        self.values = array("d")


class Rows:
    """`Rows` holds the rows of one file, or of one run where a file names its runs."""

    def __init__(self) -> None:
        self.count = 0
        """The number of rows."""
        self.columns: dict[str, Column] = {}
        """Known key -> its numbers."""
        self.names: dict[str, Column | None] = {}
        """Every key of the file, as it is written -> its column; None for an unknown key."""
        self.written: dict[str, str] = {}
        """Known key -> how the file writes it."""
        self.groups: set[str] = set()
        """The keys whose values are groups of keys."""
        self.ends: list[int] = []
        """The rows before which a session of the trainer ended."""

    def add(self, row: Mapping[str, Any], null: float | None = None) -> None:
        """Add a row of numbers, of texts such as "NaN", and of groups of them; everything else is left out.

        Args:
            row: Key -> value.
            null: The number that None stands for; None leaves such values out.
        """
        groups: list[tuple[str, Mapping[str, Any]]] = [("", row)]
        for prefix, group in groups:
            for key, value in group.items():
                kind = type(value)
                if kind is dict:
                    self.groups.add(f"{prefix}{key}")
                    groups.append((f"{prefix}{key}/", value))
                    continue
                name = prefix + key if prefix else key
                try:
                    column = self.names[name]
                except KeyError:
                    column = self._named(name)
                if column is None:
                    continue
                measured = value if kind is float else null if value is None else number(value)
                if measured is not None:
                    column.rows.append(self.count)
                    column.values.append(measured)
        if ENDS in row:
            self.ends.append(self.count + 1)
        self.count += 1

    def _named(self, name: str) -> Column | None:
        """Return the column for a key that is seen for the first time, None if the key is unknown."""
        known = plain(name)
        column = self.columns.setdefault(known, Column()) if known in known_keys() else None
        if column is not None:
            self.written.setdefault(known, name)
        if column is not None or len(self.names) < MOST_NAMES:
            self.names[name] = column
        return column

    @property
    def measured(self) -> set[str]:
        """Return the known keys that have numbers."""
        return {name for name, column in self.columns.items() if column.rows}


def plain(name: str) -> str:
    """Return a key as the dialects have it: without `train/`, and without the spaces of Unsloth's tables."""
    return name.replace(" / ", "/").strip().removeprefix(PREFIX)


def number(value: Any) -> float | None:
    """Return a number or a text such as "NaN" as a float; None for any other value.

    A text such as 240/960 is a number out of a total.
    """
    if isinstance(value, bool | int | float):
        try:
            return float(value)
        except OverflowError:
            return math.inf
    if isinstance(value, str) and len(value) < 10_000:
        try:
            return float(value)
        except ValueError:
            part, slash, total = value.partition("/")
            return float(part) if slash and part.isdecimal() and total.isdecimal() else None
    return None


def some_of(keys: Iterable[str]) -> str:
    """Return at most six of the keys on one line, for an error message."""
    return ", ".join(" ".join(key.split()) for key in sorted(keys)[:6]) or "none"


def unwrapped(text: str) -> str:
    """Replace the printed form of NumPy and PyTorch by the bare number: np.float64(3.8) becomes 3.8."""
    return _WRAPPED.sub(r"\1", text) if "(" in text else text
