"""A filter of system calls that would let a candidate keep memory or kernel objects beyond its limits.

System V shared memory stays after a process has left it, so no limit of a process bounds it; the other calls are
surface that no honest program needs.
"""

from __future__ import annotations

import platform
import struct
from functools import lru_cache

from aepo.errors import InvalidValue

# The audit number of the architecture, and the numbers of shmget, msgget, semget, add_key, request_key, keyctl,
# perf_event_open, bpf, userfaultfd, io_uring_setup, ptrace, process_vm_readv and process_vm_writev
# (asm/unistd_64.h, asm-generic/unistd.h).
_MACHINES = {
    "x86_64": (0xC000003E, (29, 68, 64, 248, 249, 250, 298, 321, 323, 425, 101, 310, 311)),
    "aarch64": (0xC00000B7, (194, 186, 190, 217, 218, 219, 241, 280, 282, 425, 117, 270, 271)),
}
_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000 | 38
# x86_64 has a second table of calls (x32) from this number on.
_X32 = 0x40000000


@lru_cache(maxsize=2)
def program(machine: str = platform.machine()) -> bytes:
    """Return the filter as the classic BPF program that bubblewrap reads.

    Raises:
        InvalidValue: The numbers of this machine's system calls are not known.
    """
    if machine not in _MACHINES:
        raise InvalidValue("sandbox", machine, f"on one of {', '.join(_MACHINES)}, whose system calls are known")
    audit, calls = _MACHINES[machine]
    # (code, jump if true, jump if false, value); the jumps lead to the last two lines.
    lines = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, audit), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    lines += [(_AT_LEAST, len(calls) + 1, 0, _X32)]
    lines += [(_EQUAL, len(calls) - place, 0, number) for place, number in enumerate(calls)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ENOSYS)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
