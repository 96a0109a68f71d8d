"""`aepo compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Compare:
    """Compare methods x targets x seeds of one file at equal cost, with paired differences (docs/compare.md)."""

    file: Annotated[Path, tyro.conf.Positional]
    """TOML: cost, budget, methods, targets, seeds, baseline, [base], [evaluation]."""
    out: Path | None = None
    """Folder of the runs and the table (default: runs/NAME of the file). A comparison that was stopped continues."""
    dry_run: bool = False
    """List the runs and their cost, and stop."""
    at_once: int | None = None
    """Runs at the same time (default: as many as memory and cores allow)."""

    def run(self) -> None:
        """Run what is missing, write the results, and print the table."""
        from aepo.analysis.compare.run import compare

        compare(self.file, self.out or Path("runs") / self.file.stem, dry_run=self.dry_run, at_once=self.at_once)
