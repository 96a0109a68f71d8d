"""`aepo grade`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Grade:
    """Grade a JSONL file of {"completion", "answer", ...}, or what `aepo evaluate` wrote, and say why answers are wrong
    (docs/grading.md).
    """

    file: Annotated[Path, tyro.conf.Positional]
    """One JSON object per line, or the folder of an `aepo evaluate`. The answer is a text, a number or a list of
    accepted answers. With --grader code, a line is {"completion", "tests": [...]}, or a row of a data set of code
    problems, such as HumanEval's, with "completion" (docs/code.md)."""
    out: Path | None = None
    """The file of the graded lines (default: NAME.graded.jsonl beside FILE)."""
    grader: Literal["math", "exact", "qwen", "code"] = "math"
    """math: equal values; exact: the same text; qwen: the verdicts of Qwen2.5-Math's evaluation; code: the program in
    the last closed fence passes the tests."""
    rounded: bool = False
    """With math: accept 1/3 for the known answer 0.33, for benchmarks whose answers are rounded (Minerva Math)."""
    units: bool = False
    """With qwen: keep units in answers, as the original program does for Minerva Math."""
    seconds: float | None = None
    """Limit of one grading, in seconds of processor time (default: 5). An answer that reaches it is wrong, and a
    failure. With --grader code, the limit of one test (default: 10).
    """
    processes: int = 2
    """Gradings at the same time."""
    sandbox: Literal["bubblewrap", "weak"] = "bubblewrap"
    """For --grader code: bubblewrap, or weak: limits of time and memory alone, for programs that you trust."""

    def run(self) -> None:
        """Grade, write the graded lines, and print what came out."""
        from aepo.bars import counted
        from aepo.errors import require
        from aepo.grading.files import grade_file
        from aepo.grading.math import MathGrader
        from aepo.grading.qwen import QwenGrader
        from aepo.grading.table import GRADERS

        if self.grader == "code":
            self._grade_code()
            return
        require(self.sandbox == "bubblewrap", "--sandbox", self.sandbox, "left out without --grader code")
        require(not self.rounded or self.grader == "math", "--rounded", self.rounded, "used with --grader math")
        require(not self.units or self.grader == "qwen", "--units", self.units, "used with --grader qwen")
        options = {"math": MathGrader(rounded=self.rounded), "qwen": QwenGrader(units=self.units)}
        grader = options.get(self.grader) or GRADERS[self.grader]()
        source = self.file / "samples.jsonl" if self.file.is_dir() else self.file
        out = self.out or source.with_name(f"{source.stem}.graded.jsonl")
        limit = 5.0 if self.seconds is None else self.seconds
        with counted("graded", error=True) as progress:
            summary = grade_file(source, out, grader, self.processes, limit, progress)
        print("\n".join(summary.lines()))
        print(f"written: {out}")

    def _grade_code(self) -> None:
        from aepo.bars import counted
        from aepo.errors import require
        from aepo.grading.code.files import grade_code_file

        seconds = 10 if self.seconds is None else int(self.seconds)
        require(self.seconds in (None, seconds), "--seconds", self.seconds, "a whole number with --grader code")
        for name in ("rounded", "units"):
            require(not getattr(self, name), f"--{name}", True, "left out with --grader code")
        out = self.out or self.file.with_name(f"{self.file.stem}.graded.jsonl")
        with counted("graded", error=True) as progress:
            summary = grade_code_file(self.file, out, self.processes, seconds, self.sandbox, progress)
        print("\n".join(summary.lines()))
        print(f"written: {out}")
