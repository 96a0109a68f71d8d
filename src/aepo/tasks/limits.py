"""`limited` ends a call that takes too long, by signals, in the process that makes the call."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class LimitReachedError(BaseException):
    """`LimitReachedError` ends a call at its limit. `except Exception` in the called function does not catch it."""


@contextmanager
def limited(seconds: float | None, wall_seconds: float | None) -> Iterator[None]:
    """Raise `LimitReachedError` inside a `with` block that takes too long.

    The signals need the main thread and a system that has them; elsewhere there is no limit. They reach Python code and
    waits, not a computation inside a C extension.

    Args:
        seconds: The processor seconds of this process that the block may take; None for no limit.
        wall_seconds: The seconds on the clock that the block may take; None for no limit.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    limits = [
        (signal.ITIMER_PROF, signal.SIGPROF, seconds, f"it took {seconds or 0:g} s of processor time"),
        (signal.ITIMER_REAL, signal.SIGALRM, wall_seconds, f"it took {wall_seconds or 0:g} s"),
    ]
    handlers = {}
    try:
        for timer, number, limit, words in limits:
            if limit is not None:
                handlers[timer, number] = signal.signal(number, _raiser(words))
                # The timer repeats, because a bare `except:` in the function can catch the first signal.
                signal.setitimer(timer, limit, 1.0)
        yield
    finally:
        for (timer, number), before in handlers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, before)


def _raiser(words: str) -> Callable[[int, FrameType | None], None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise LimitReachedError(words)

    return stop
