"""Judging a candidate: run its tests in a sandbox, and compare what came out here."""

from __future__ import annotations

import ast
import os
import queue
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

from aepo.grading.code.output import same_output
from aepo.grading.code.problem import Call, CodeProblem, Program, Stdio, Test
from aepo.grading.code.sandbox import Isolation, Outcome, Sandbox
from aepo.grading.code.values import Unreadable, equal, shown

Mode = Literal["values", "asserts"]


@dataclass(frozen=True)
class CodeGrade:
    """`CodeGrade` is the verdict on a candidate."""

    correct: bool
    """Whether all tests passed."""
    reason: str
    """Why, in a few words: the first test that failed."""
    failed: bool = False
    """Whether there is no verdict, because no sandbox started or its wall-clock time ran out; `correct` is false."""
    tests: int = 0
    """The number of tests."""
    failed_tests: tuple[int, ...] = ()
    """The numbers of the tests that failed or did not run, from 1."""
    seconds: float = 0.0
    """Processor time of all tests, seconds."""
    mode: Mode = "values"
    """`values`: every value was compared outside. `asserts`: a test ran in the candidate's process, which a hostile
    candidate can fool.
    """
    isolation: Isolation = "bubblewrap"
    """The isolation of the sandbox."""

    def details(self) -> dict[str, Any]:
        """Return what a row of samples says of the judging, as plain JSON data."""
        return {
            "tests_passed": self.tests - len(self.failed_tests),
            "tests_failed": list(self.failed_tests),
            "processor_seconds": self.seconds,
            "judged_by": self.mode,
            "sandbox": self.isolation,
        }

    @property
    def share(self) -> float:
        """Return the share of all tests that passed."""
        return (self.tests - len(self.failed_tests)) / self.tests if self.tests else 0.0


@dataclass(frozen=True)
class _Record:
    """What the driver wrote of one test; the candidate may have forged it."""

    status: int
    seconds: float
    report: bytes
    stdout: bytes


@dataclass
class _Tally:
    """The tests of one candidate that have been judged so far."""

    problems: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    no_verdict: str = ""


def grade(code: str | None, problem: CodeProblem, sandbox: Sandbox = Sandbox(), slot: int = 0) -> CodeGrade:
    """Return the verdict on the code of an answer.

    Args:
        code: The program; None if the answer has none.
        problem: The tests.
        sandbox: The sandbox.
        slot: The number of the sandbox among those that run at the same time.
    """
    return _grade(code, problem, sandbox, slot, None)


def _grade(
    code: str | None, problem: CodeProblem, sandbox: Sandbox, slot: int, cancelled: threading.Event | None
) -> CodeGrade:
    numbers = range(1, len(problem.tests) + 1)
    mode: Mode = "asserts" if problem.weak else "values"
    if code is None or not code.strip():
        reason = "no code: the answer has no closed fence" if code is None else "no code: the fence is empty"
        return CodeGrade(False, reason, False, len(numbers), tuple(numbers), 0.0, mode, sandbox.isolation)
    tally = _Tally()
    # What runs inside holds expected values, so it has a sandbox of its own, after all else.
    for weak in (False, True):
        part = {n: test for n, test in zip(numbers, problem.tests, strict=True) if isinstance(test, Program) == weak}
        if part and not tally.no_verdict:
            outcome = sandbox.run(_job(code, problem.before, list(part.values()), sandbox), slot, cancelled)
            _judge(outcome, part, tally, sandbox)
        elif part:
            tally.problems |= dict.fromkeys(part, "it did not run")
    failed = tuple(sorted(tally.problems))
    reason = f"all {len(numbers)} tests passed"
    if failed:
        reason = f"test {failed[0]} of {len(numbers)}: {tally.problems[failed[0]]}"
    return CodeGrade(
        not failed and not tally.no_verdict,
        tally.no_verdict or reason,
        bool(tally.no_verdict),
        len(numbers),
        failed,
        round(tally.seconds, 4),
        mode,
        sandbox.isolation,
    )


def _job(code: str, before: str, tests: Sequence[Test], sandbox: Sandbox) -> dict[str, object]:
    """Return the job of the driver. It holds no expected value and no expected output."""
    room = sandbox.limits.file_mb * 2**20 + 8 * max(map(_expected_size, tests))
    return {"code": code, "before": before, "tests": [_row(test) for test in tests], "file_bytes": room}


def _expected_size(test: Test) -> int:
    if isinstance(test, Program):
        return 0
    return len(test.stdout) if isinstance(test, Stdio) else len(test.value)


def _row(test: Test) -> tuple[str, ...]:
    if isinstance(test, Call):
        return "call", test.function, test.arguments, "method" if test.method else ""
    return ("stdio", test.stdin) if isinstance(test, Stdio) else ("program", test.text, test.function)


# --- one sandbox --------------------------------------------------------------------------------------------


def _judge(outcome: Outcome, part: dict[int, Test], tally: _Tally, sandbox: Sandbox) -> None:
    """Judge the tests of one sandbox."""
    ready, _, written = outcome.written.partition(b"\n")
    # A file that holds anything else was written by the candidate, so a sandbox did start.
    if not outcome.written:
        lines = outcome.errors.splitlines()
        tally.no_verdict = f"no sandbox started: {lines[-1][:200] if lines else 'it wrote nothing'}"
        tally.problems |= dict.fromkeys(part, tally.no_verdict)
        return
    records = _records(written) if ready == b"ready" else {}
    tally.seconds += max(outcome.seconds, sum(record.seconds for record in records.values()))
    missing = _missing(outcome, sandbox)
    for place, (number, test) in enumerate(part.items()):
        problem = missing if place not in records else _problem(test, records[place], sandbox.limits.seconds)
        if problem:
            tally.problems[number] = problem
    # A test that ran and failed is a verdict, whatever else did not run.
    if outcome.stopped == "clock" and all(problem == missing for problem in tally.problems.values()):
        tally.no_verdict = missing


def _missing(outcome: Outcome, sandbox: Sandbox) -> str:
    if outcome.stopped == "processor":
        return "the processor time of all tests together ran out"
    if outcome.stopped == "clock":
        return f"no verdict: it waited, or the machine was busy ({outcome.seconds:.1f} s of processor time)"
    return "the sandbox ended before it"


def _records(written: bytes) -> dict[int, _Record]:
    """Return the records by the place of the test. What cannot be read ends the list."""
    records: dict[int, _Record] = {}
    while written:
        line, _, written = written.partition(b"\n")
        try:
            place, status, micros, *sizes = map(int, line.split())
            first, second = (min(max(size, 0), len(written)) for size in sizes)
        except ValueError:
            break
        parts = written[:first], written[first : first + second]
        seconds = min(max(micros, 0), 10**12) / 1e6
        records.setdefault(place, _Record(status & 0xFFFF, seconds, *parts))
        written = written[first + second :]
    return records


def _problem(test: Test, record: _Record, limit: int) -> str:
    """Return what is wrong with the result of a test; an empty text if nothing is."""
    if isinstance(test, Stdio):
        return _output_problem(test, record, limit)
    if record.report[:1] == b"P" and isinstance(test, Program):
        return ""
    if record.report[:1] != b"V" or not isinstance(test, Call):
        return _error(record, limit)
    text = record.report[1:].decode("ascii", errors="replace")
    wanted = ast.literal_eval(test.value)
    right = any(_equal(value, text, test.loose) for value in [wanted, *(wanted if test.either else ())])
    asked = f"{test.function}({shown(test.arguments)})"
    return "" if right else f"{asked} gave {shown(text)}, wanted {shown(test.value)}"


def _equal(wanted: Any, text: str, loose: bool) -> bool:
    try:
        return equal(wanted, text, loose)
    except Unreadable:
        return False


def _output_problem(test: Stdio, record: _Record, limit: int) -> str:
    if record.status != 0:
        return _error(record, limit)
    given = record.stdout.decode(errors="replace")
    return "" if same_output(test.stdout, given) else f"it printed {given[:100]!r}, wanted {test.stdout[:100]!r}"


def _error(record: _Record, limit: int) -> str:
    if record.report[:1] == b"E":
        return record.report[1:401].decode(errors="replace")
    ended = os.WTERMSIG(record.status) if os.WIFSIGNALED(record.status) else 0
    # The kernel counts this limit in ticks, so the measured time may fall short of it.
    if ended and record.seconds >= limit * 0.8:
        return f"its processor time of {limit} s ran out"
    if ended:
        return f"it was ended by {_signal(ended)}"
    return f"it ended with exit status {os.WEXITSTATUS(record.status)} and gave no value"


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- many candidates ----------------------------------------------------------------------------------------


class CodeJudge:
    """`CodeJudge` judges many candidates, several at the same time, while the caller goes on.

    Args:
        sandbox: The sandbox.
        processes: The number of sandboxes at the same time; None for one for each processor.

    >>> with CodeJudge() as judge:
    ...     grades = judge.start([("def add(a, b): return a + b", problem)])
    ...     grade = grades[0].result()
    """

    def __init__(self, sandbox: Sandbox = Sandbox(), processes: int | None = None) -> None:
        count = processes or os.cpu_count() or 1
        self._sandbox = sandbox
        self._cancelled = threading.Event()
        self._slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(count):
            self._slots.put(slot)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="aepo-code")

    def __enter__(self) -> CodeJudge:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what runs. The judge cannot be used again."""
        self._cancelled.set()
        self._threads.shutdown(cancel_futures=True)

    def start(self, items: Sequence[tuple[str | None, CodeProblem]]) -> list[Future[CodeGrade]]:
        """Begin to judge these (code, problem), and return at once."""
        return [self._threads.submit(self._one, *item) for item in items]

    def judge(self, items: Sequence[tuple[str | None, CodeProblem]]) -> list[CodeGrade]:
        """Return the verdicts on these (code, problem), in their order."""
        return self.wait(self.start(items))

    def wait(self, started: Sequence[Future[CodeGrade]]) -> list[CodeGrade]:
        """Wait for the verdicts of `start`. If the wait is interrupted, all sandboxes of this judge are stopped."""
        try:
            return [future.result() for future in started]
        except BaseException:
            self.stop(started)
            raise

    def stop(self, started: Sequence[Future[CodeGrade]]) -> None:
        """Stop all sandboxes of this judge, and start none for these verdicts of `start`. The judge can be used again.

        A program whose sandbox was stopped has no verdict: its grade counts as failed.
        """
        for future in started:
            future.cancel()
        self._cancelled.set()
        self._cancelled = threading.Event()

    def _one(self, code: str | None, problem: CodeProblem) -> CodeGrade:
        slot = self._slots.get()
        try:
            return _grade(code, problem, self._sandbox, slot, self._cancelled)
        finally:
            self._slots.put(slot)
