"""`Due` says after which steps a run evaluates and saves a checkpoint: after a number of steps, or by time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from aepo.config import Config


class Due:
    """`Due` counts the time since the last evaluation and the last checkpoint of this process.

    Args:
        config: The settings of the run.
        clock: Returns the present time, seconds.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._config, self._clock = config, clock
        self._last = {"evaluation": clock(), "checkpoint": clock()}

    def evaluation(self, step: int) -> bool:
        """Return whether this finished step is followed by an evaluation."""
        settings = self._config.evaluation
        return self._due("evaluation", settings.every, settings.minutes, step)

    def checkpoint(self, step: int) -> bool:
        """Return whether this finished step is followed by a checkpoint."""
        settings = self._config.checkpoint
        return self._due("checkpoint", settings.every, settings.minutes, step)

    def _due(self, what: str, every: int | str, minutes: float, step: int) -> bool:
        if isinstance(every, int):
            return every > 0 and step % every == 0
        return self._clock() - self._last[what] >= 60 * minutes

    def done(self, what: Literal["evaluation", "checkpoint"]) -> None:
        """Count the time from now on, after an evaluation or a checkpoint has ended."""
        self._last[what] = self._clock()
