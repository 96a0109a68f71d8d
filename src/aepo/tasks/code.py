"""The verifier of programs: it runs the code of an answer against the tests of its row, in a sandbox (docs/code.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from aepo.errors import InvalidValue, require
from aepo.grading.code.answer import code_of
from aepo.grading.code.formats import problem_of, statement_of
from aepo.grading.code.judge import CodeGrade, CodeJudge
from aepo.grading.code.problem import CodeProblem
from aepo.grading.code.sandbox import Limits, Sandbox
from aepo.tasks.rewards import Answered, Begun, Verdict, Verifier


@dataclass(frozen=True)
class Code(Verifier):
    """`Code` gives 1.0 if the program of an answer passes all tests of its row, else 0.0.

    The program is the last closed fence of the completion. Where no sandbox starts or the wall-clock time runs out,
    the reward is 0.0 and the verdict counts as failed.
    """

    name: ClassVar[str] = "code"
    reward: Literal["all", "share"] = "all"
    """`all`: 1 if all tests pass, else 0. `share`: the share of all tests that pass."""
    seconds: int = 10
    """Processor time of one test, in seconds; all tests of a program together may take six times as much."""
    memory_mb: int = 512
    """Address space of each process of a program, MiB."""
    processes: int | None = None
    """Programs that are judged at the same time; none for one per core."""
    sandbox: Literal["bubblewrap", "weak"] = "bubblewrap"
    """`bubblewrap`, or `weak`: limits of time and memory alone, and no protection of files, network and processes."""
    python: str | None = None
    """The interpreter of the programs; none for the running one, or /usr/bin/python3 if others cannot read that."""

    def __post_init__(self) -> None:
        require(self.seconds >= 1, "verifier.seconds", self.seconds, "at least 1 second")
        require(self.memory_mb >= 64, "verifier.memory_mb", self.memory_mb, "at least 64 MiB")
        ok = self.processes is None or self.processes >= 1
        require(ok, "verifier.processes", self.processes, "at least 1, or none for one per core")

    @property
    def special_tokens(self) -> bool:
        """Return False: an end-of-turn token behind the closing fence would leave the fence open."""
        return False

    def check(self) -> None:
        """Start a sandbox once."""
        try:
            self._sandbox.check()
        except InvalidValue as error:
            raise InvalidValue(f"verifier.{error.field}", error.got, error.wanted) from None

    def judge(self, items: Sequence[Answered]) -> list[Verdict]:
        """Judge all completions."""
        return self.start(items).wait()

    @property
    def background(self) -> bool:
        """Return True: sandboxes are processes of their own."""
        return True

    def start(self, items: Sequence[Answered]) -> Begun:
        """Begin to judge completions."""
        self.check()
        problems = [CodeProblem.from_json(item.answer) for item in items]
        pairs = [(code_of(item.completion, problem), problem) for item, problem in zip(items, problems, strict=True)]
        started = self._judge.start(pairs)
        return Begun(lambda: list(map(self._verdict, self._judge.wait(started))), lambda: self._judge.stop(started))

    def _verdict(self, grade: CodeGrade) -> Verdict:
        reward = float(grade.correct) if self.reward == "all" or grade.failed else grade.share
        logged = {"reason": grade.reason, **grade.details()}
        return Verdict(reward, grade.failed, grade.reason, right=grade.correct, logged=logged)

    @cached_property
    def _sandbox(self) -> Sandbox:
        return Sandbox(self.sandbox, self.python, Limits(seconds=self.seconds, memory_mb=self.memory_mb))

    @cached_property
    def _judge(self) -> CodeJudge:
        return CodeJudge(self._sandbox, self.processes)


def code_record(record: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """Return a row of a code problem with the usual columns: id, prompt, answer (its tests as JSON) and solution.

    Raises:
        InvalidValue: The row has no tests, or tests that cannot be used.
    """
    problem = problem_of(record, where)
    statement = statement_of(record, problem)
    columns = {**record, "answer": problem.to_json()}
    if statement is not None:
        columns["prompt"] = statement
    for name in ("task_id", "question_id", "problem_id", "name"):
        if isinstance(record.get(name), int | str):
            columns.setdefault("id", record[name])
    known = record.get("code") or record.get("canonical_solution")
    if known is None and isinstance(record.get("test"), str) and "```" not in str(record.get("solution")):
        known = record.get("solution")  # KodCode's, which is a bare program
    if isinstance(known, str):
        columns["solution"] = f"```python\n{problem.stub}{known}\n```"
    return columns
