"""`aepo watch`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Watch:
    """Show a run in the terminal: entropy and target as a line, and the latest numbers. Wait until it is there."""

    folder: Annotated[Path, tyro.conf.Positional]
    """The run folder."""
    once: bool = False
    """Print one picture and stop."""
    every: float = 2.0
    """Seconds between two readings of the folder."""

    def run(self) -> None:
        """Show the run until it is finished, or until q is pressed."""
        from aepo.analysis.watch import watch

        watch(self.folder, self.once, self.every)
