"""`Bar` shows how much of a piece of work is done and how long the rest takes; `counted` makes it from its counts."""

from __future__ import annotations

import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

# Seconds between two lines where the output is not a terminal.
LINE_EVERY = 5.0
# The longest text beside a bar, so that a line fits 80 columns.
LONGEST = 22


class Bar:
    """`Bar` shows a bar with the time left on a terminal, and a line every few seconds elsewhere.

    It is a context manager. The bar disappears at the end.

    Args:
        total: The amount of work.
        unit: What is counted, in the plural, such as `completions`.
        done: The amount that was done before.
        error: Whether the output goes to standard error, so that standard output holds results alone.
    """

    def __init__(self, total: int, unit: str, done: int = 0, error: bool = False) -> None:
        self._total, self._unit, self._first, self._done = total, unit, done, done
        self._error = error
        self._begun = self._said = time.monotonic()
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Bar:
        self._begun = self._said = time.monotonic()
        stream = sys.stderr if self._error else sys.stdout
        if stream.isatty():
            self._progress = _progress(self._error, self._unit)
            self._task = self._progress.add_task("", total=self._total, completed=self._done)
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def add(self, count: int, text: str = "") -> None:
        """Count work that is done now; `text` says what is being worked on."""
        self.reach(self._done + count, text)

    def reach(self, done: int, text: str = "") -> None:
        """Say how much of the whole work is done; `text` says what is being worked on."""
        self._done = done
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, description=text[:LONGEST])
            return
        now = time.monotonic()
        # Long work says less often where it is.
        if now - self._said >= max(LINE_EVERY, (now - self._begun) / 20):
            self._said = now
            print(self.line(text, now - self._begun), file=sys.stderr if self._error else sys.stdout, flush=True)

    def line(self, text: str, seconds: float) -> str:
        """Return the line for an output that is no terminal.

        Args:
            text: What is being worked on.
            seconds: The time since the start.
        """
        about = f"{text}: " if text else ""
        left = ""
        if self._done > self._first:
            left = f", {duration(seconds / (self._done - self._first) * (self._total - self._done))} left"
        return f"{about}{self._done} of {self._total} {self._unit}{left}"


@contextmanager
def counted(unit: str, text: str = "", error: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that shows a bar from its first call on; its arguments are the amounts done and in all.

    Args:
        unit: What is counted, in the plural.
        text: What is being worked on.
        error: Whether the output goes to standard error.
    """
    with ExitStack() as stack:
        bars: list[Bar] = []

        def show(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Bar(total, unit, error=error)))
            bars[0].reach(done, text)

        yield show


def print_wrapped(*lines: str) -> None:
    """Print lines; in a terminal they are cut between words to its width, and what is cut off is indented."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
    for line in lines:
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        if width:
            cut = textwrap.wrap(line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
        else:
            cut = [line]
        print(*cut, sep="\n", flush=True)


def duration(seconds: float) -> str:
    """Return a time in words, such as 2 min 05 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _progress(error: bool, unit: str) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(12),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeRemainingColumn(),
        TextColumn("left"),
        TextColumn("{task.description}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=error), transient=True)
