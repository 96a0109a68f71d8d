"""`Activity` says what a run does inside a step: sampling, scoring or updating, and how many rows are done."""

from __future__ import annotations

import time
from collections.abc import Callable

# Seconds between two reports of one activity.
OFTEN = 0.2

Show = Callable[[str, int, int], None]
"""A function that shows a name, the rows that are done, and all rows."""


class Activity:
    """`Activity` passes on what happens, at most a few times a second. Without a listener it does nothing."""

    def __init__(self) -> None:
        self.show: Show | None = None
        self._what, self._all, self._done, self._shown = "", 0, 0, 0.0
        self._before = 0

    def begin(self, what: str, rows: int) -> None:
        """Begin something that handles this number of rows."""
        self._what, self._all, self._done, self._shown = what, rows, 0, time.monotonic()
        self._before = 0
        if self.show is not None:
            self.show(what, 0, rows)

    def part(self, before: int) -> None:
        """Begin a part of it, whose own count starts at 0; `before` is the number of rows in earlier parts."""
        self._before = before
        self.at(0)

    def advance(self, rows: int) -> None:
        """Report that further rows are done."""
        self.at(self._done + rows)

    def at(self, done: int) -> None:
        """Report how many rows are done, in the present part."""
        self._done, now = done, time.monotonic()
        if self.show is not None and now - self._shown >= OFTEN:
            self._shown = now
            self.show(self._what, self._before + done, self._all)
