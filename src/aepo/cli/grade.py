"""`aepo grade`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Grade:
    """Grade a JSONL file of {"completion", "answer", ...}: add `correct`, `reason` and `failed` to each line.

    With --grader code, each line is {"completion", "tests": [...]} or a row of a data set of code problems, such as
    HumanEval's, with "completion" (docs/code.md).
    """

    file: Annotated[Path, tyro.conf.Positional]
    """One JSON object per line. The answer is a text, a number or a list of accepted answers."""
    out: Path | None = None
    """The file of the graded lines (default: NAME.graded.jsonl beside FILE)."""
    grader: Literal["math", "exact", "qwen", "code"] = "math"
    """math: equal values; exact: the same text; qwen: the lenient rules of Qwen2.5-Math's evaluation; code: the program
    in the last closed fence passes the tests.
    """
    seconds: float | None = None
    """Wall-clock limit of one grading (default: 5); an answer that reaches it is wrong and counts as a failure. With
    --grader code, the processor time of one test (default: 10).
    """
    processes: int = 2
    """Gradings at the same time."""
    sandbox: Literal["bubblewrap", "weak"] = "bubblewrap"
    """For --grader code: bubblewrap, or weak: limits of time and memory alone, for programs that you trust."""

    def run(self) -> None:
        """Grade, write the graded lines, and print one line."""
        from aepo.errors import require
        from aepo.grading.files import grade_code_file, grade_file
        from aepo.grading.table import GRADERS

        out = self.out or self.file.with_name(f"{self.file.stem}.graded.jsonl")
        if self.grader == "code":
            seconds = 10 if self.seconds is None else int(self.seconds)
            require(seconds == (self.seconds or 10), "--seconds", self.seconds, "a whole number with --grader code")
            print(grade_code_file(self.file, out, self.processes, seconds, self.sandbox).line())
            return
        require(self.sandbox == "bubblewrap", "--sandbox", self.sandbox, "left out without --grader code")
        seconds_of_grade = 5.0 if self.seconds is None else self.seconds
        print(grade_file(self.file, out, GRADERS[self.grader](), self.processes, seconds_of_grade).line())
