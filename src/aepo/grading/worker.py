"""The program of a grading process: it answers each pair with a grade until the connection closes."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

from aepo.grading.base import Grade, Grader


def serve(descriptor: int) -> None:
    """Grade the pairs that arrive on a socket until it closes.

    The first message is (grader, memory limit in bytes, limit of one grading in seconds of processor time). The reply
    is None if the grader is ready; else it is a text with the error, and the function returns. Each further message is
    (completion, answer), and its reply is a `Grade`.

    Args:
        descriptor: The file descriptor of the socket.
    """
    # Control-C reaches the whole process group, but the parent decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connection(descriptor) as connection:
        try:
            grader, memory, seconds = connection.recv()
            _limit_memory(memory)
            grader.prepare()
            connection.send(None)
        except Exception as error:
            connection.send(f"{type(error).__name__}: {error}")
            return
        while (pair := _next(connection)) is not None:
            _limit_time(seconds)
            grade = _graded(grader, *pair)
            _limit_time(0)
            connection.send(grade)


def _next(connection: Connection) -> tuple[str, str] | None:
    try:
        pair: tuple[str, str] = connection.recv()
    except (EOFError, ConnectionError):
        return None
    return pair


def _graded(grader: Grader, completion: str, answer: str) -> Grade:
    try:
        return grader.grade(completion, answer)
    except Exception as error:
        return Grade(False, f"the grader raised {type(error).__name__}: {str(error)[:200]}", failed=True)


def _limit_time(seconds: float) -> None:
    """End this process after so many seconds of its own processor time, also in the middle of C code; 0 for never.

    Without interval timers (Windows) the parent's wall-clock limit is the only one.
    """
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ModuleNotFoundError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))
