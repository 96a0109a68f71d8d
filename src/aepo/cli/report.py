"""`aepo report`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write one HTML page of one or more runs, with its figures and a Markdown twin (docs/report.md)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders. Runs that differ only in their seed get intervals. Of several paths, those that are no run folder
    are left out."""
    out: Path | None = None
    """Folder of report.html, report.md and figures/ (default: report/ in the folder of the run, or beside several)."""
    base: Path | None = None
    """The base model's pass@k: the folder of an `aepo evaluate` on the runs' task, or the base.json of an
    `aepo compare` (default: the base.json beside the runs, if it belongs to them)."""
    step: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """Show the samples of this step; may be repeated (default: the first, the middle and the last step)."""

    def run(self) -> None:
        """Read the runs, write the page, and print its path."""
        from aepo.analysis.report.build import report
        from aepo.analysis.report.runs import readable

        print(f"written: {readable(str(report(self.runs, self.out, self.base, self.step)))}")
