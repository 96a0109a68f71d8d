"""`StopRequest` turns Ctrl-C and SIGTERM into a stop after the present step, so that nothing is lost."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """`StopRequest` remembers that somebody asked the run to stop. It is a context manager.

    Inside the `with` block the first Ctrl-C or SIGTERM sets `signal`, and the run ends after its present step. A second
    one ends the process at once. Handlers can only be set in the main thread; elsewhere nothing changes.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.signal: int | None = None
        """The signal that asked for the stop; None if nobody asked."""
        self._quiet = quiet
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _asked(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if not self._quiet:
            print("stopping: the present step ends first (a second Ctrl-C ends at once)", flush=True)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
