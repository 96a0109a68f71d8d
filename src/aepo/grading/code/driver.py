"""The program inside the sandbox: it runs each test of one candidate in a child process and writes down what came out.

The sandbox starts it with the interpreter of the machine, so it imports built-in modules only. It knows no expected
value: whatever a candidate does to this process can only change values that are compared outside.

Standard input holds the job, a Python literal; standard output gets `ready`, and for each test one line (number, exit
status, processor time in microseconds, three lengths) with the report, the standard output and the end of the standard
error.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import posix
import resource
import sys

# A sandbox starts for every candidate, and typing takes longer to import than all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ERRORS = 400
# The most bytes of standard output that are kept of all tests; they lie in memory.
ALL_OUTPUT = 2**25


def main() -> None:
    """Run the job on standard input."""
    job = eval(read(0, 1 << 30).decode("ascii"), {})
    posix.closerange(3, 1 << 20)
    # Kept out of reach of what is written to the standard streams.
    out = posix.dup(1)
    # As process 1 of the sandbox, only what has a handler reaches this process; Python installs one for SIGINT.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    limit(job)
    posix.write(out, b"ready\n")
    space, late = prepared(job["before"])
    room = ALL_OUTPUT
    for number, test in enumerate(job["tests"]):
        files = [posix.memfd_create(name) for name in ("stdin", "stdout", "stderr", "report")]
        child = posix.fork()
        if child == 0:
            candidate(job, test, space, late, files)
        status, used = waited(child, job["alone"])
        report, stdout = read(files[3], job["file_bytes"]), b""
        if test[0] == "stdio":
            stdout = read(files[1], min(room, job["file_bytes"]))
            room -= len(stdout)
        parts = (report, stdout, read(files[2], job["file_bytes"])[-ERRORS:])
        line = " ".join(map(str, (number, status, used, *map(len, parts))))
        write(out, line.encode() + b"\n" + b"".join(parts))
        for file in files:
            posix.close(file)


def limit(job: dict[str, Any]) -> None:
    """Limit this process and all its children for good."""
    for which, value in (
        (resource.RLIMIT_NPROC, job["processes"]),
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def waited(child: int, alone: bool) -> tuple[int, int]:
    """Return the child's wait status and processor time, after the end of every process that it started."""
    status, used = 0, 0
    while True:
        ended, code, usage = posix.wait4(-1, 0)
        used += int((usage.ru_utime + usage.ru_stime) * 1e6)
        if ended == child:
            status = code
            break
    if not alone or posix.getpid() != 1:
        # Without a namespace of its own, only the child's group may be ended.
        try:
            posix.killpg(child, _signal.SIGKILL)
        except OSError:
            pass
        return status, used
    while True:
        try:
            posix.kill(-1, _signal.SIGKILL)
        except OSError:
            pass
        try:
            usage = posix.wait4(-1, 0)[2]
            used += int((usage.ru_utime + usage.ru_stime) * 1e6)
        except OSError:
            return status, used


def prepared(before: str) -> tuple[dict[str, Any], str]:
    """Return a name space in which the trusted code has run, and the code that must still run in each child."""
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    if before:
        try:
            exec(compile(before, "before.py", "exec"), space)
        except BaseException:
            return {"__name__": "__main__", "__builtins__": __builtins__}, before
    return space, ""


# --- in the child -------------------------------------------------------------------------------------------


def candidate(job: dict[str, Any], test: tuple[str, ...], space: dict[str, Any], late: str, files: list[int]) -> None:
    """Run one test and end the process."""
    kind = test[0]
    try:
        posix.setpgid(0, 0)
        for which, value in ((resource.RLIMIT_CPU, job["seconds"]), (resource.RLIMIT_FSIZE, job["file_bytes"])):
            resource.setrlimit(which, (value, value))
        report = streams(files, test[1] if kind == "stdio" else "")
        sys.argv = ["answer.py"]
        main_module = type(sys)("__main__")
        main_module.__dict__.update(space)
        sys.modules["__main__"] = main_module
        names = main_module.__dict__
        try:
            for text in (late, job["code"]):
                if text:
                    exec(compile(text, "answer.py", "exec"), names)
            if kind == "call":
                write(report, b"V" + encoded(call(test[1], test[2], names), job["file_bytes"]))
            elif kind == "program":
                program(test[1], test[2], names)
                write(report, b"P")
        except SystemExit as end:
            if kind != "stdio":
                raise ValueError(f"the program ended itself (SystemExit {str(end)[:100]})") from None
            if end.code not in (None, 0):
                ended()
                posix._exit(1)
        if kind == "stdio":
            ended()
        posix._exit(0)
    except BaseException as error:
        try:
            text = f"{type(error).__name__}: {error}"
        except BaseException:
            text = type(error).__name__
        try:
            write(report, b"E" + text[:ERRORS].encode(errors="replace"))
        finally:
            posix._exit(1)
    finally:
        posix._exit(1)


def streams(files: list[int], stdin: str) -> int:
    """Make the files the standard streams, close all other descriptors, and return that of the report."""
    write(files[0], stdin.encode(errors="surrogatepass"))
    posix.lseek(files[0], 0, 0)
    copies = [posix.dup2(posix.dup(file), 50 + place, inheritable=False) for place, file in enumerate(files)]
    for place in range(3):
        posix.dup2(copies[place], place)
    for descriptor in range(3, 64):
        if descriptor != copies[3]:
            try:
                posix.close(descriptor)
            except OSError:
                pass
    sys.stdin = open(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = open(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)
    vars(sys).update(__stdin__=sys.stdin, __stdout__=sys.stdout, __stderr__=sys.stderr)
    return copies[3]


def ended() -> None:
    """Do what an interpreter does at its end: wait for threads, call exit handlers, write out standard output."""
    if "threading" in sys.modules:
        sys.modules["threading"]._shutdown()
    import atexit

    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except ValueError:
        pass  # the program has closed it


def call(function: str, arguments: str, names: dict[str, Any]) -> Any:
    """Return what the candidate's function returns."""
    given: tuple[tuple[Any, ...], dict[str, Any]] = eval(f"(lambda *a, **k: (a, k))({arguments})", {})
    head = function.split("(")[0].split(".")[0]
    if head not in names:
        raise NameError(f"{head} is not defined")
    return eval(function, names)(*given[0], **given[1])


def program(text: str, function: str, names: dict[str, Any]) -> None:
    """Run a test that is a program, in the name space of the candidate; it may import the candidate as `solution`."""
    sys.modules["solution"] = sys.modules["__main__"]
    exec(compile(text, "test.py", "exec"), names)
    if function:
        eval(function, names)


def encoded(value: Any, most: int) -> bytes:
    """Return a value as JSON; ValueError if it is longer than so many bytes."""
    parts: list[str] = []
    encode(value, parts.append, [most])
    if (size := sum(map(len, parts))) >= most - 1:
        raise ValueError(f"the returned value is too large ({size} bytes)")
    return "".join(parts).encode("ascii")


def encode(value: Any, put: Callable[[str], object], left: list[int]) -> None:
    """Write a value of built-in types as JSON. What JSON lacks is a table with one key; values.py reads them."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError("the returned value is too large")
    if value is None or value is True or value is False:
        put("null" if value is None else "true" if value else "false")
    elif isinstance(value, int):
        number = int.__add__(value, 0)
        put(int.__repr__(number) if -(10**18) < number < 10**18 else f'{{"i":"{number:x}"}}')
    elif isinstance(value, float):
        number_text = float.__repr__(float.__add__(value, 0.0))
        put({"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}.get(number_text, number_text))
    elif isinstance(value, str):
        import _json

        text = _json.encode_basestring_ascii(value)
        left[0] -= len(text)
        put(text)
    elif isinstance(value, bytes | bytearray):
        left[0] -= 2 * len(value)
        put(f'{{"b":"{bytes(value).hex()}"}}')
    elif isinstance(value, complex):
        put(f'{{"c":["{value.real.hex()}","{value.imag.hex()}"]}}')
    else:
        encode_many(value, put, left)


def encode_many(value: Any, put: Callable[[str], object], left: list[int]) -> None:
    """Write a container, or a number that is a fraction."""
    views: Any = (type({}.keys()), type({}.items()))
    if isinstance(value, list):
        items(list.__iter__(value), "[", "]", put, left)
    elif isinstance(value, tuple):
        items(tuple.__iter__(value), '{"t":[', "]}", put, left)
    elif isinstance(value, set):
        items(set.__iter__(value), '{"s":[', "]}", put, left)
    elif isinstance(value, frozenset):
        items(frozenset.__iter__(value), '{"s":[', "]}", put, left)
    elif isinstance(value, views):
        items(set(value), '{"s":[', "]}", put, left)
    elif isinstance(value, dict):
        pairs = (item for pair in dict.items(value) for item in pair)
        items(pairs, '{"d":[', "]}", put, left)
    elif hasattr(type(value), "as_integer_ratio"):
        top, bottom = type(value).as_integer_ratio(value)
        items(iter((top, bottom)), '{"q":[', "]}", put, left)
    else:
        raise TypeError(f"returned a value of type {type(value).__name__}, which is not built in")


def items(values: Any, opening: str, closing: str, put: Callable[[str], object], left: list[int]) -> None:
    """Write the items of a container between two brackets."""
    put(opening)
    comma = ""
    for value in values:
        put(comma)
        encode(value, put, left)
        comma = ","
    put(closing)


# --- files --------------------------------------------------------------------------------------------------


def read(file: int, most: int) -> bytes:
    """Return a file from its beginning, at most so many bytes."""
    parts, place = [], 0
    while place < most and (part := posix.pread(file, min(1 << 20, most - place), place)):
        parts.append(part)
        place += len(part)
    return b"".join(parts)


def write(file: int, data: bytes) -> None:
    """Write all data."""
    while data:
        data = data[posix.write(file, data) :]


if __name__ == "__main__":
    main()
