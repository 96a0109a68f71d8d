"""`Callback` is called after every step and every evaluation of a run, and may stop it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aepo.training.evaluate import Evaluation


class Callback:
    """`Callback` watches a run from Python. Override what you need.

    >>> class StopAtReward(Callback):
    ...     def on_step(self, row):
    ...         return row["reward"] is not None and row["reward"] > 0.9
    """

    def on_step(self, row: Mapping[str, Any]) -> bool | None:
        """Take the row of a finished step (docs/metrics.md). Return true to stop the run, with a checkpoint."""
        return None

    def on_evaluation(self, step: int, evaluation: Evaluation) -> None:
        """Take an evaluation and the step after which it was made; step 0 is before training."""
