"""The program inside the sandbox: it runs each test of one candidate in a child process and writes down what came out.

The sandbox starts it with the interpreter of the machine, so it imports built-in modules only. It knows no expected
value: whatever a candidate does to this process can only change values that are compared outside.

Standard input holds the job, a Python literal; standard output gets `ready`, and for each test one line (number, exit
status, processor time in microseconds, two lengths) with the report and the standard output.
"""

import _signal  # type: ignore[import-not-found]
import posix
import resource
import sys

# A sandbox starts for every candidate, and typing takes longer to import than all else here.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Given = tuple[tuple[Any, ...], dict[str, Any]]

ERRORS = 400
# The most bytes of standard output that are kept of all tests; they lie in memory.
ALL_OUTPUT = 2**25
# The descriptors of a test's report and of the output of this program.
REPORT, OUT = 3, 4
# The exit status of a candidate that has started threads.
THREADS = 97
# The most tests of one process that is copied: each has an open file, of the 64 that a process may have.
AT_ONCE = 32
# Arguments of this many characters together are read before the first copy; longer ones one by one, for their memory.
SHORT = 1 << 14


def main() -> None:
    """Run the job on standard input."""
    job = eval(read(0, 1 << 30).decode("ascii"), {})
    if orphaned(job["lifeline"]):
        posix._exit(1)
    posix.closerange(3, 1 << 20)
    # As process 1 of the sandbox, only what has a handler reaches this process; Python installs one for SIGINT.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    limit(job)
    job["alone"] = job["alone"] and posix.getpid() == 1
    job["room"] = ALL_OUTPUT
    # Kept out of reach of what is written to the standard streams. A test puts its report in the place of the first.
    posix.dup2(1, REPORT)
    posix.dup2(1, OUT)
    if not job["alone"]:
        # Where no process can be started, that is no fault of the candidate: the end here says that nothing ran.
        posix.waitpid(posix.fork() or posix._exit(0), 0)
    posix.write(OUT, b"ready\n")
    space, late = prepared(job["before"])
    tests = dict(enumerate(job["tests"]))
    short = [number for number, test in tests.items() if test[0] != "stdio"]
    for first in range(0, len(short), AT_ONCE):
        some = short[first : first + AT_ONCE]
        if len(some) > 1 and together(job, {number: tests[number] for number in some}, space, late):
            for number in some:
                del tests[number]
    for number, test in tests.items():
        separately(job, number, test, space, late)
    # The end of an interpreter would cost a tenth of a sandbox's time.
    posix._exit(0)


def orphaned(lifeline: int) -> bool:
    """Return whether the process that holds the other end of a pipe is gone."""
    posix.set_blocking(lifeline, False)
    try:
        return not posix.read(lifeline, 1)
    except BlockingIOError:
        return False


def limit(job: "dict[str, Any]") -> None:
    """Limit this process and all its children for good."""
    for which, value in (
        (resource.RLIMIT_NPROC, job["processes"]),
        (resource.RLIMIT_AS, job["memory"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))


def separately(job: "dict[str, Any]", number: int, test: tuple[str, ...], space: "dict[str, Any]", late: str) -> None:
    """Run a test in a process that executes the candidate anew."""
    report, stdout = memory_file("report"), memory_file("stdout")
    child = posix.fork()
    if child == 0:
        guarded(report, stdout, test, lambda: alone(job, test, space, late))
    status, used = waited(child, job["alone"], {})
    record(job, number, status, used, report, stdout if test[0] == "stdio" else -1)
    posix.close(report)
    posix.close(stdout)


def together(job: "dict[str, Any]", tests: dict[int, tuple[str, ...]], space: "dict[str, Any]", late: str) -> bool:
    """Execute the candidate once, and run each test in a copy of that process. Return whether the tests have run.

    The candidate controls the process that is copied, and can forge what it notes of its copies. No verdict depends on
    that: the returned values are compared outside.
    """
    reports = {number: memory_file("report") for number in tests}
    report, (notes, noting) = memory_file("report"), posix.pipe()
    child = posix.fork()
    if child == 0:
        guarded(report, -1, ("", ""), lambda: copied(job, tests, space, late, reports, noting), True)
    posix.close(noting)
    end: dict[str, int] = {}
    left, before = dict(reports), 0
    for number, status, used in noted(notes, child, end):
        if number in left:
            record(job, number, status, used, left.pop(number))
            before += used
    status, used = waited(child, job["alone"], end)
    used = max(0, used - before)
    apart = status == THREADS << 8 and len(left) == len(tests)
    for number in () if apart else left:
        record(job, number, status, used, report)
        used = 0
    for file in (notes, report, *reports.values()):
        posix.close(file)
    return not apart


def noted(notes: int, child: int, end: dict[str, int]) -> "Iterator[tuple[int, int, int]]":
    """Yield number, status and processor time of each test that has run; the candidate may have written anything."""
    import select

    tail, poll = b"", select.poll()
    poll.register(notes, select.POLLIN)
    while True:
        # Another process of the candidate may keep the pipe open after the candidate has ended.
        ready = poll.poll(0 if "status" in end else 200)
        data = posix.read(notes, 4096) if ready else b""
        if not data and (ready or "status" in end):
            return
        *lines, tail = (tail[-100:] + data).split(b"\n")
        for line in lines:
            try:
                number, status, used = map(int, line.split())
            except ValueError:
                continue
            yield number, status, used
        while reaped(child, end, posix.WNOHANG):
            pass


def waited(child: int, alone: bool, end: dict[str, int]) -> tuple[int, int]:
    """Return the child's wait status and processor time, after the end of every process that it started."""
    while "status" not in end:
        reaped(child, end)
    while True:
        end_others(child, alone)
        if not alone or not reaped(child, end):
            return end["status"], end["used"]


def reaped(child: int, end: dict[str, int], flags: int = 0) -> bool:
    """Return whether a process has ended, after adding what it used to `end`."""
    try:
        ended, code, usage = posix.wait4(-1, flags)
    except ChildProcessError:
        return False
    end["used"] = end.get("used", 0) + int((usage.ru_utime + usage.ru_stime) * 1e6)
    if ended == child:
        end["status"] = code
    return ended != 0


def end_others(child: int, alone: bool) -> None:
    """End all processes but this one; without a namespace of its own, those alone that are in the child's group."""
    try:
        if alone:
            posix.kill(-1, _signal.SIGKILL)
        else:
            posix.killpg(child, _signal.SIGKILL)
    except OSError:
        pass


def record(job: "dict[str, Any]", number: int, status: int, used: int, report: int, stdout: int = -1) -> None:
    """Write the record of a test."""
    printed = b"" if stdout < 0 else read(stdout, min(job["room"], job["file_bytes"]))
    job["room"] -= len(printed)
    parts = (read(report, job["file_bytes"]), printed)
    line = " ".join(map(str, (number, status, used, *map(len, parts))))
    write(OUT, line.encode() + b"\n" + b"".join(parts))


def prepared(before: str) -> "tuple[dict[str, Any], str]":
    """Return a name space in which the trusted code has run, and the code that must still run in each child."""
    space = {"__name__": "__main__", "__builtins__": __builtins__}
    if before:
        try:
            exec(before, space)
        except BaseException:
            return {"__name__": "__main__", "__builtins__": __builtins__}, before
    return space, ""


# --- in the child -------------------------------------------------------------------------------------------


def guarded(report: int, stdout: int, test: tuple[str, ...], work: "Callable[[], None]", kept: bool = False) -> None:
    """Take the standard streams of a test, do the work of a child, report its error, and end the process."""
    try:
        streams(report, stdout, test[1] if test[0] == "stdio" else "", kept)
        work()
        posix._exit(0)
    except BaseException as error:
        try:
            text = f"{type(error).__name__}: {error}"
        except BaseException:
            text = type(error).__name__
        try:
            write(REPORT, b"E" + text[:ERRORS].encode(errors="replace"))
        finally:
            posix._exit(1)
    finally:
        posix._exit(1)


def alone(job: "dict[str, Any]", test: tuple[str, ...], space: "dict[str, Any]", late: str) -> None:
    """Execute the candidate and run one test."""
    confine(job)
    if test[0] != "stdio":
        tested(job, test, given_to(test), executed(job, space, late))
        return
    try:
        executed(job, space, late, script=True)
    except SystemExit as end:
        if end.code not in (None, 0):
            ended()
            posix._exit(1)
    ended()


def copied(
    job: "dict[str, Any]",
    tests: dict[int, tuple[str, ...]],
    space: "dict[str, Any]",
    late: str,
    reports: dict[int, int],
    noting: int,
) -> None:
    """Execute the candidate, and run each test in a child, which has limits and standard streams of its own.

    Nothing needs this process after the last test, so that one runs here, if most of the processor time is left.
    """
    confine(job)
    names = executed(job, space, late)
    if len(sys._current_frames()) > 1:
        posix._exit(THREADS)  # a copy would lack them
    usage = resource.getrusage(resource.RUSAGE_SELF)
    own = int((usage.ru_utime + usage.ru_stime) * 1e6)
    short = sum(len(test[2]) for test in tests.values()) <= SHORT
    # The memory of a process that has been copied is slow: the kernel copies each page when it is first written to.
    read = {number: given_to(test) for number, test in tests.items()} if short else {}
    last = max(tests) if own < job["seconds"] * 10**5 else -1
    for number, test in tests.items():
        given = read[number] if short else given_to(test)
        if number == last:
            guarded(posix.dup(REPORT), -1, test, lambda: copy(job, test, given, names))  # noqa: B023
        child = posix.fork()
        if child == 0:
            guarded(reports[number], -1, test, lambda: copy(job, test, given, names))  # noqa: B023
        _, status, usage = posix.wait4(child, 0)
        end_others(child, job["alone"])
        used = own + int((usage.ru_utime + usage.ru_stime) * 1e6)
        write(noting, f"{number} {status} {used}\n".encode())
        own = 0


def copy(job: "dict[str, Any]", test: tuple[str, ...], given: "Given", names: "dict[str, Any]") -> None:
    """Run one test in a copy of the process that has executed the candidate."""
    posix.setpgid(0, 0)
    tested(job, test, given, names)


def confine(job: "dict[str, Any]") -> None:
    """Limit this process and all its children, each for itself and for good."""
    posix.setpgid(0, 0)
    for which, value in (
        (resource.RLIMIT_CPU, job["seconds"]),
        (resource.RLIMIT_FSIZE, job["file_bytes"]),
        (resource.RLIMIT_NOFILE, 64),
    ):
        resource.setrlimit(which, (value, value))


def executed(job: "dict[str, Any]", space: "dict[str, Any]", late: str, script: bool = False) -> "dict[str, Any]":
    """Execute the candidate as the main module, and return its names."""
    sys.argv = ["answer.py"]
    main_module = type(sys)("__main__")
    main_module.__dict__.update(space)
    sys.modules["__main__"] = main_module
    names = main_module.__dict__
    try:
        for text in (late, job["code"]):
            if text:
                exec(text, names)
    except SystemExit as end:
        if script:
            raise
        raise ValueError(f"the program ended itself (SystemExit {str(end)[:100]})") from None
    return names


def given_to(test: tuple[str, ...]) -> "Given":
    """Return the arguments of a call; a program has none."""
    text = test[2] if test[0] == "call" else ""
    given: Given = eval(f"(lambda *a, **k: (a, k))({text})", {})
    return given


def tested(job: "dict[str, Any]", test: tuple[str, ...], given: "Given", names: "dict[str, Any]") -> None:
    """Run a call or a program, and report the value."""
    try:
        if test[0] == "call":
            write(REPORT, b"V" + encoded(function(test[1], test[3], names)(*given[0], **given[1]), job["file_bytes"]))
        else:
            program(test[1], test[2], names)
            write(REPORT, b"P")
    except SystemExit as end:
        raise ValueError(f"the program ended itself (SystemExit {str(end)[:100]})") from None


def streams(report: int, stdout: int, stdin: str, kept: bool) -> None:
    """Make files the standard streams and the report, and close all other descriptors, or with `kept` OUT alone."""
    files = [memory_file("stdin"), stdout if stdout >= 0 else memory_file("stdout"), memory_file("stderr")]
    write(files[0], stdin.encode(errors="surrogatepass"))
    posix.lseek(files[0], 0, 0)
    posix.dup2(report, REPORT, inheritable=False)
    # The interpreter's own objects of the standard streams stay: nothing was read or written through them before.
    for place, file in enumerate(files):
        posix.dup2(file, place)
        if kept:
            posix.close(file)
    posix.closerange(OUT, OUT + 1 if kept else 1 << 20)


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


def function(name: str, method: str, names: "dict[str, Any]") -> "Any":
    """Return the candidate's function, or with `method` that of its class Solution."""
    head = name.split("(")[0].split(".")[0]
    if head in names:
        return names[name] if head == name else eval(name, names)
    if method and "Solution" in names:
        return getattr(names["Solution"](), name)
    raise NameError(f"{head} is not defined")


def program(text: str, last: str, names: "dict[str, Any]") -> None:
    """Run a test that is a program, in the name space of the candidate; it may import the candidate as `solution`."""
    sys.modules["solution"] = sys.modules["__main__"]
    exec(text, names)
    if last:
        eval(last, names)


def encoded(value: "Any", most: int) -> bytes:
    """Return a value as JSON; ValueError if it is longer than so many bytes."""
    parts: list[str] = []
    encode(value, parts.append, [most])
    if (size := sum(map(len, parts))) >= most - 1:
        raise ValueError(f"the returned value is too large ({size} bytes)")
    return "".join(parts).encode("ascii")


def encode(value: "Any", put: "Callable[[str], object]", left: list[int]) -> None:
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


def encode_many(value: "Any", put: "Callable[[str], object]", left: list[int]) -> None:
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


def items(values: "Any", opening: str, closing: str, put: "Callable[[str], object]", left: list[int]) -> None:
    """Write the items of a container between two brackets."""
    put(opening)
    comma = ""
    for value in values:
        put(comma)
        encode(value, put, left)
        comma = ","
    put(closing)


# --- files --------------------------------------------------------------------------------------------------


def memory_file(name: str) -> int:
    """Return a file without a name, which can grow and leaves nothing behind."""
    return posix.memfd_create(name)


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
