"""Grading in processes that can be killed, so that no answer, however hostile, hangs or ends the program.

A worker is a new interpreter that imports this package and nothing of the calling program (no torch, no `__main__`). So
a worker is ready in about half a second, and scripts need no `if __name__ == "__main__"`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from types import TracebackType

from aepo.errors import InvalidValue, require
from aepo.grading.base import Grade, Grader
from aepo.grading.text import printable

_START_SECONDS = 120.0
# sympy's caches grow, so a worker is replaced after this many gradings, long before it reaches the memory limit.
_LIFETIME = 5000
# Limits are the worker's own processor time, which a busy machine does not use up. A worker that sleeps uses none, and
# is ended after so many times the limit on the clock. Where there is no timer of processor time, the clock counts.
_PATIENCE = 20.0 if hasattr(signal, "setitimer") else 1.0


@dataclass(eq=False)
class _Worker:
    """`_Worker` is the parent's record of one grading process."""

    process: subprocess.Popen[bytes]
    """The process."""
    connection: Connection
    """The parent's end of the connection."""
    deadline: float
    """When the process must be ready or have graded its pair, in seconds of `time.monotonic()`."""
    ready: bool = False
    """Whether the process has loaded its grader."""
    item: int | None = None
    """The number of the pair that the process grades; None if it is idle."""
    graded: int = 0
    """The number of gradings so far."""

    def stop(self) -> int:
        """Kill the process, wait for its end, and return its exit status."""
        if self.process.poll() is None:
            self.process.kill()
        self.connection.close()
        return self.process.wait()


class GradingPool:
    """`GradingPool` grades lists of (completion, answer) in several processes.

    `failures` counts the gradings so far that hung or crashed. Only one thread may use a pool at a time.

    Args:
        grader: The rule.
        processes: The number of workers at the same time.
        seconds: The limit of one grading, seconds of the worker's processor time, so that a busy machine fails no
            answer. A worker that waits without computing is ended after 20 times as many seconds on the clock.
        max_chars: Longer completions are cut to their last `max_chars` characters, where the answer is.
        memory_mb: The largest address space of a worker, MiB.

    >>> with GradingPool(MathGrader(), processes=2, seconds=5) as pool:
    ...     grades = pool.grade([(r"\\boxed{4}", "4")])
    """

    def __init__(
        self,
        grader: Grader,
        processes: int = 2,
        seconds: float = 5.0,
        *,
        max_chars: int = 100_000,
        memory_mb: int = 2048,
    ) -> None:
        require(processes >= 1, "processes", processes, "at least 1")
        require(seconds > 0, "seconds", seconds, "a positive number of seconds")
        require(max_chars >= 1, "max_chars", max_chars, "at least 1")
        require(memory_mb >= 256, "memory_mb", memory_mb, "at least 256")
        self.failures = 0
        self._grader, self._processes, self._seconds = grader, processes, seconds
        self._max_chars, self._memory_mb = max_chars, memory_mb
        self._workers: list[_Worker] = []
        # The workers also end when the pool is garbage-collected, and when the program ends.
        self._finalizer = weakref.finalize(self, _stop, self._workers)
        self._closed = False

    def __enter__(self) -> GradingPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers. The pool cannot be used again."""
        self._closed = True
        self._stop_all()

    def grade(self, pairs: Sequence[tuple[str, str]]) -> list[Grade]:
        """Return the grades of these (completion, answer), in their order.

        Raises:
            InvalidValue: A worker cannot start, for instance because a library is missing.
            ValueError: The pool is closed.
        """
        if self._closed:
            raise ValueError("the pool is closed")
        grades: dict[int, Grade] = {}
        waiting = deque(range(len(pairs)))
        try:
            while len(grades) < len(pairs):
                self._hand_out(pairs, waiting)
                for item, grade in self._collect():
                    grades[item] = self._noted(grade, len(pairs[item][0]))
        except BaseException:
            # A late reply of this call must not be taken for a reply of the next one.
            self._stop_all()
            raise
        self.failures += sum(grade.failed for grade in grades.values())
        return [grades[item] for item in range(len(pairs))]

    def _hand_out(self, pairs: Sequence[tuple[str, str]], waiting: deque[int]) -> None:
        """Start missing workers, and give the next pairs to idle ones."""
        for worker in [w for w in self._workers if w.ready and w.item is None and w.graded >= _LIFETIME]:
            self._drop(worker)
        busy = sum(worker.item is not None for worker in self._workers)
        while len(self._workers) < min(self._processes, busy + len(waiting)):
            self._workers.append(self._start())
        for worker in self._workers:
            if waiting and worker.ready and worker.item is None:
                worker.item = waiting.popleft()
                worker.deadline = time.monotonic() + self._seconds * _PATIENCE
                self._send(worker, pairs[worker.item])

    def _send(self, worker: _Worker, pair: tuple[str, str]) -> None:
        completion, answer = pair
        # If the worker has died, `_collect` finds the closed connection and reports it.
        with suppress(ConnectionError):
            worker.connection.send((printable(completion[-self._max_chars :]), printable(answer)))

    def _collect(self) -> list[tuple[int, Grade]]:
        """Wait until a worker is ready, replies, dies or runs out of time; return (number of the pair, grade)."""
        awaited = {worker.connection: worker for worker in self._workers if worker.item is not None or not worker.ready}
        if not awaited:
            return []
        left = min(worker.deadline for worker in awaited.values()) - time.monotonic()
        heard = {awaited[connection] for connection in wait(list(awaited), max(0.0, left))}  # type: ignore[index]
        events = [self._hear(worker) for worker in heard]
        now = time.monotonic()
        late = [w for w in awaited.values() if w not in heard and w.deadline <= now]
        events += [
            self._end(worker, f"no verdict within {self._seconds * _PATIENCE:g} s on the clock") for worker in late
        ]
        return [event for event in events if event is not None]

    def _hear(self, worker: _Worker) -> tuple[int, Grade] | None:
        try:
            message = worker.connection.recv()
        except (EOFError, ConnectionError):
            return self._end(worker, "")
        if not worker.ready:
            if message is not None:
                raise InvalidValue("grader", self._grader.name, f"one whose process can start ({message})")
            worker.ready = True
            return None
        item, worker.item = worker.item, None
        worker.graded += 1
        assert item is not None
        return item, message

    def _end(self, worker: _Worker, why: str) -> tuple[int, Grade]:
        """Stop a worker and return a failed grade for its pair."""
        status, item = self._drop(worker), worker.item
        if item is None:
            raise InvalidValue("grader", self._grader.name, f"one whose process can start ({_ending(status)})")
        if hasattr(signal, "SIGPROF") and status == -signal.SIGPROF:
            why = f"no verdict within {self._seconds:g} s of processor time"
        return item, Grade(False, why or f"the grading process ended ({_ending(status)})", failed=True)

    def _noted(self, grade: Grade, chars: int) -> Grade:
        if chars <= self._max_chars:
            return grade
        return replace(grade, reason=f"{grade.reason} (read: the last {self._max_chars} of {chars} characters)")

    def _start(self) -> _Worker:
        ours, theirs = Pipe()
        with theirs:
            program = f"import sys; sys.path[:] = {sys.path!r}; from aepo.grading.worker import serve; serve(%d)"
            process = subprocess.Popen(
                [sys.executable, "-c", program % theirs.fileno()],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                # Sets have the same order in every process, so that every process reaches the same grade.
                env={**os.environ, "PYTHONHASHSEED": "0"},
            )
        worker = _Worker(process, ours, time.monotonic() + _START_SECONDS)
        try:
            with suppress(ConnectionError):
                ours.send((self._grader, self._memory_mb * 2**20, self._seconds))
        except BaseException:
            worker.stop()
            raise
        return worker

    def _drop(self, worker: _Worker) -> int:
        self._workers.remove(worker)
        return worker.stop()

    def _stop_all(self) -> None:
        _stop(self._workers)


def _stop(workers: list[_Worker]) -> None:
    while workers:
        workers.pop().stop()


def _ending(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
