"""`aepo calibrate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Calibrate:
    """Measure a base model on data, and propose targets and settings, each with its reason (docs/calibrate.md)."""

    model: Annotated[str, tyro.conf.Positional]
    """A folder in Hugging Face format, a name on the hub, or `builtin`."""
    data: Annotated[str, tyro.conf.Positional]
    """A file of problems and answers, a data set, or a task: paths, countdown, gym."""
    prompts: int = 64
    """Number of prompts. Standard errors are over prompts."""
    samples: int = 16
    """Completions of each prompt."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """A setting of a run that matters here; may be repeated: --set task.max_response=4096
    --set policy.dtype=bfloat16 (default: those of `aepo settings`)."""
    out: Path | None = None
    """Write the proposals to this file, as a recipe for `aepo train` (default: print them only)."""

    def run(self) -> None:
        """Measure, print the proposals, and write the recipe."""
        from aepo.errors import require
        from aepo.planning.calibrate import calibration_config, measure, proposals, recipe
        from aepo.training.folder import write_atomically

        wanted = "the path of a file in a folder that exists"
        ready = self.out is None or (self.out.parent.is_dir() and not self.out.is_dir())
        require(ready, "--out", str(self.out), wanted)
        config = calibration_config(self.model, self.data, self.set)
        found = measure(config, self.prompts, self.samples)
        proposed = proposals(found, config.task)
        print(*found.lines(), *(proposal.line() for proposal in proposed), sep="\n")
        if self.out is not None:
            write_atomically(self.out, recipe(config, self.set, found, proposed))
