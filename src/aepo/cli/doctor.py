"""`aepo doctor`."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Doctor:
    """Say what is wrong with a run, from its log: ours, TRL, verl, OpenRLHF, W&B, TensorBoard, ... (docs/doctor.md)."""

    logs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Log files, folders with logs in them or below them, or wandb://entity/project/run."""
    resumed_at: Annotated[tuple[int, ...], tyro.conf.UseAppendAction] = field(default=())
    """A step at which the run was resumed, where the log does not show it; may be repeated."""
    json: bool = False
    """Print JSON instead of a table."""
    html: Path | None = None
    """Write a page as well that shows each finding in a figure of its series."""

    def run(self) -> None:
        """Print the findings; exit code 1 if something serious is sure or likely."""
        from aepo.doctor.report import doctor

        sys.exit(doctor(self.logs, self.resumed_at, self.json, self.html))
