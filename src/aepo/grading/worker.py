"""The process in which answers are graded: one message in, one grade out, until the other end closes."""

from __future__ import annotations

import signal
from multiprocessing.connection import Connection

from aepo.grading.base import Grade, Grader


def serve(descriptor: int) -> None:
    """Take (grader, memory limit in bytes, CPU seconds) from this socket, say None when ready, then grade pairs."""
    # Control-C reaches the whole process group; when to end is for the parent to say.
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
            connection.send(_graded(grader, *pair))


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


def _limit_memory(limit: int) -> None:
    try:
        import resource
    except ModuleNotFoundError:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def _limit_time(seconds: float) -> None:
    """End this process should it still compute long after the limit: then the parent, who kills it, is gone."""
    try:
        import resource
    except ModuleNotFoundError:
        return
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    soft = int(used + 2 * seconds) + 10
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard < 0 else min(soft, hard), hard))
