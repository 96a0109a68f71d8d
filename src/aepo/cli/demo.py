"""`aepo demo`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from aepo.errors import require


@dataclass(frozen=True)
class Demo:
    """Make the picture of the README: GRPO, and AEPO at several targets, from one base model."""

    model: str = "builtin"
    """The base model: `builtin` (minutes); or `smollm2`, a folder or a name on the hub, which writes sentences (hours
    on a CPU)."""
    out: Path | None = None
    """Folder of the runs, the figure and the table (default: runs/demo, or runs/demo-MODEL)."""
    steps: int | None = None
    """Steps of each run (default: 200, or 60 for another model than `builtin`)."""
    minutes: float | None = None
    """Minutes that everything may take, with another model than `builtin`: all runs then do as many steps as fit
    (default: no limit)."""
    seed: int = 0
    """Seed of each run."""

    def run(self) -> None:
        """Run all at the same time on the cores of the machine, or one after the other on a GPU."""
        if self.model == "builtin":
            require(self.minutes is None, "--minutes", self.minutes, "left out with the built-in model")
            from aepo.analysis.demo import demo

            demo(self.out or Path("runs/demo"), 200 if self.steps is None else self.steps, self.seed)
            return
        from aepo.analysis.demo import MODEL_STEPS, demo_model

        name = re.sub(r"[^\w.-]+", "-", Path(self.model).name)
        steps = MODEL_STEPS if self.steps is None else self.steps
        demo_model(self.out or Path(f"runs/demo-{name}"), self.model, steps, self.seed, self.minutes)
