"""Looking at the processes of a sandbox from outside, and ending them."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path


def descendants(process: int) -> Iterator[int]:
    """Yield all processes that a process has started and their descendants, parents first."""
    for thread in Path(f"/proc/{process}/task").glob("*"):
        with suppress(OSError):
            for child in (thread / "children").read_text().split():
                yield int(child)
                yield from descendants(int(child))


def processor_seconds(process: int) -> float:
    """Return the processor time of a process and its descendants, those that have ended included, seconds."""
    ticks = 0
    for number in (process, *descendants(process)):
        with suppress(OSError):
            # The fields after the name, which may hold anything: utime, stime, cutime and cstime are 11 to 14.
            fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def threads_of(user: int) -> int:
    """Return the number of threads of all processes of a user, which is what a limit of processes counts."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == user:
                count += len(list((process / "task").iterdir()))
    return count


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its descendants, and wait for the process.

    The first descendant is process 1 of the sandbox. When it ends, the kernel ends all others before the sandbox's own
    process can see it.
    """
    if process.poll() is None:
        for number in list(descendants(process.pid)):
            with suppress(OSError):
                os.kill(number, signal.SIGKILL)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
