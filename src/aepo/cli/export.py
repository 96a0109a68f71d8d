"""`aepo export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from aepo.errors import require


@dataclass(frozen=True)
class Export:
    """Make a plain Hugging Face folder of a run's checkpoint, with a model card, and push it to a hub if asked
    (docs/models.md).
    """

    run_: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(name="run")]
    """The run folder, or the folder of one of its checkpoints."""
    to: Path | None = None
    """The new folder (default: export-step-N in the run folder)."""
    step: int | None = None
    """Export the checkpoint after this step (default: the newest)."""
    dtype: Literal["float32", "bfloat16", "bf16"] | None = None
    """The dtype of the weights (default: the run's policy.dtype)."""
    push: str | None = None
    """Upload the folder to this repository, OWNER/NAME (default: no upload)."""
    private: bool = False
    """With --push: make a new repository private."""

    def run(self) -> None:
        """Write the folder, and push it."""
        from aepo.analysis.export import export

        require(not self.private or self.push is not None, "--private", True, "given together with --push")
        export(self.run_, self.to, self.step, self.dtype, self.push, self.private)
