"""`aepo evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import tyro

from aepo.evaluation.options import Options


@dataclass(frozen=True)
class Evaluate(Options):
    """Measure pass@k and maj@k of a model or a run, with intervals, on benchmarks, a file or a task
    (docs/evaluation.md).
    """

    model: Annotated[str, tyro.conf.Positional]
    """A folder in Hugging Face format, a name on the hub, a run folder or one of its checkpoints, or `builtin`."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """A setting of --task; may be repeated: --set task.dataset=chain_sum (default: the task's own)."""

    def run(self) -> None:
        """Sample, write the results, and print one table."""
        from aepo.evaluation.run import run

        run(self)
