"""`Workers` run a reward function in processes of their own, which are killed when a call hangs.

A worker is a new interpreter that imports this package and the function, and nothing of the calling program.
"""

from __future__ import annotations

import math
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue

from aepo.errors import InvalidValue
from aepo.tasks.rewards import Answered, Verdict, Verifier

_START_SECONDS = 120.0
# A worker ends a call by itself at its limit. The parent kills it if it has not answered this much later.
_GRACE_SECONDS = 5.0


class Workers:
    """`Workers` judge lists of completions in several processes.

    Args:
        verifier: What judges, as a picklable value. Each worker runs it in its own process.
        processes: The number of workers at the same time.
        wall_seconds: The limit of one call, in seconds on the clock; None for no limit.
    """

    def __init__(self, verifier: Verifier, processes: int, wall_seconds: float | None) -> None:
        self._verifier, self._limit = verifier, wall_seconds
        self._processes = processes
        self._idle: SimpleQueue[_Worker | None] = SimpleQueue()
        for _ in range(processes):
            self._idle.put(None)
        self._running: list[_Worker] = []
        self._lock = threading.Lock()
        # The workers also end when this object is garbage-collected, and when the program ends.
        self._finalizer = weakref.finalize(self, _stop, self._running)

    def judge(self, calls: Sequence[Sequence[Answered]]) -> list[list[Verdict]]:
        """Return the verdicts of each call, in order."""
        with ThreadPoolExecutor(self._processes) as threads:
            return list(threads.map(self._judge, calls))

    def _judge(self, items: Sequence[Answered]) -> list[Verdict]:
        worker = self._idle.get()
        try:
            if worker is None:
                worker = _Worker(self._verifier)
                with self._lock:
                    self._running.append(worker)
            verdicts = worker.judge(items, self._limit)
        except _EndedError as error:
            with self._lock:
                self._running[:] = [other for other in self._running if other is not worker]
            worker = None
            return [Verdict(math.nan, failed=True, reason=str(error)) for _ in items]
        finally:
            self._idle.put(worker)
        return verdicts


class _EndedError(Exception):
    """The worker was killed, or it ended by itself."""


class _Worker:
    def __init__(self, verifier: Verifier) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            program = f"import sys; sys.path[:] = {sys.path!r}; from aepo.tasks.isolated import serve; serve(%d)"
            command = [sys.executable, "-c", program % theirs.fileno()]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        with suppress(ConnectionError):
            self._connection.send(verifier)
        error = self._reply(_START_SECONDS)
        if error is not None:
            self.stop()
            raise InvalidValue("verifier.path", str(error), "a function that a process of its own can import")

    def judge(self, items: Sequence[Answered], limit: float | None) -> list[Verdict]:
        with suppress(ConnectionError):
            self._connection.send(list(items))
        verdicts: list[Verdict] = self._reply(None if limit is None else limit + _GRACE_SECONDS)
        return verdicts

    def _reply(self, seconds: float | None) -> list[Verdict]:
        try:
            if self._connection.poll(seconds):
                reply: list[Verdict] = self._connection.recv()
                return reply
            why = f"it took {seconds:g} s and was killed"
        except (EOFError, ConnectionError):
            why = "its process ended"
        status = self.stop()
        raise _EndedError(f"{why} ({_ending(status)})")

    def stop(self) -> int:
        """Kill the process, wait for its end, and return its exit status."""
        if self.process.poll() is None:
            self.process.kill()
        self._connection.close()
        return self.process.wait()


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


def _ending(status: int) -> str:
    return f"exit status {status}" if status >= 0 else signal.Signals(-status).name


def serve(descriptor: int) -> None:
    """Judge the lists that arrive on a socket until it closes. This is the program of a worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Control-C reaches all processes; the parent decides.
    with Connection(descriptor) as connection, suppress(EOFError, ConnectionError):
        verifier: Verifier = connection.recv()
        try:
            verifier.check()
            connection.send(None)
        except BaseException as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        while True:
            connection.send(verifier.judge(connection.recv()))
