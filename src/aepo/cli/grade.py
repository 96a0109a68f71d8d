"""`aepo grade`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Grade:
    """Grade a JSONL file of {"completion", "answer", ...}: add `correct`, `reason` and `failed` to each line."""

    file: Annotated[Path, tyro.conf.Positional]
    """One JSON object per line. The answer is a text, a number or a list of accepted answers."""
    out: Path | None = None
    """The file of the graded lines (default: NAME.graded.jsonl beside FILE)."""
    grader: Literal["math", "exact", "qwen"] = "math"
    """math: equal values; exact: the same text; qwen: the lenient rules of Qwen2.5-Math's evaluation."""
    seconds: float = 5.0
    """Wall-clock limit of one grading. An answer that reaches the limit is wrong and counts as a failure."""
    processes: int = 2
    """Gradings at the same time."""

    def run(self) -> None:
        """Grade, write the graded lines, and print one line."""
        from aepo.grading.files import grade_file
        from aepo.grading.table import GRADERS

        out = self.out or self.file.with_name(f"{self.file.stem}.graded.jsonl")
        print(grade_file(self.file, out, GRADERS[self.grader](), self.processes, self.seconds).line())
