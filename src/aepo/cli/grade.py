"""`aepo grade`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Grade:
    """Grade a JSONL file of {"completion", "answer", ...}: add `correct`, `reason` and `failed` to each line.

    The folder and the samples.jsonl of `aepo evaluate` are read, too. The command prints why answers are wrong.
    """

    file: Annotated[Path, tyro.conf.Positional]
    """One JSON object per line. The answer is a text, a number or a list of accepted answers."""
    out: Path | None = None
    """The file of the graded lines (default: NAME.graded.jsonl beside FILE)."""
    grader: Literal["math", "exact", "qwen"] = "math"
    """math: equal values; exact: the same text; qwen: the verdicts of Qwen2.5-Math's evaluation."""
    rounded: bool = False
    """With math: accept 1/3 for the known answer 0.33, for benchmarks whose answers are rounded (Minerva Math)."""
    units: bool = False
    """With qwen: keep units in answers, as the original program does for Minerva Math."""
    seconds: float = 5.0
    """Limit of one grading, in seconds of processor time. An answer that reaches it is wrong, and a failure."""
    processes: int = 2
    """Gradings at the same time."""

    def run(self) -> None:
        """Grade, write the graded lines, and print what came out."""
        from aepo.errors import require
        from aepo.grading.files import grade_file
        from aepo.grading.math import MathGrader
        from aepo.grading.qwen import QwenGrader
        from aepo.grading.table import GRADERS

        require(not self.rounded or self.grader == "math", "--rounded", self.rounded, "used with --grader math")
        require(not self.units or self.grader == "qwen", "--units", self.units, "used with --grader qwen")
        options = {"math": MathGrader(rounded=self.rounded), "qwen": QwenGrader(units=self.units)}
        grader = options.get(self.grader) or GRADERS[self.grader]()
        source = self.file / "samples.jsonl" if self.file.is_dir() else self.file
        out = self.out or source.with_name(f"{source.stem}.graded.jsonl")
        summary = grade_file(source, out, grader, self.processes, self.seconds, _say)
        print("\n".join(summary.lines()))
        print(f"written: {out}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
