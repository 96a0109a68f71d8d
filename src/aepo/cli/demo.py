"""`aepo demo`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """Make the picture of the README: GRPO, and AEPO at three targets, from one base model."""

    out: Path = Path("runs/demo")
    """Folder of the runs, the figure and the table."""
    steps: int = 200
    """Steps of each run."""
    seed: int = 0
    """Seed of each run."""

    def run(self) -> None:
        """Run all four at the same time on the cores of the machine."""
        from aepo.analysis.demo import demo

        demo(self.out, self.steps, self.seed)
