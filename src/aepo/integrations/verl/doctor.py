"""The doctor inside verl: one more backend of verl's `Tracking`, which gets every row that verl logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from aepo.doctor.live import DoctorConfig, Watcher

BACKEND = "aepo_doctor"


class DoctorLogger:
    """`DoctorLogger` examines verl's log while the run goes on, and ends the run if a fault is sure enough.

    Args:
        trainer: verl's trainer. Its last step becomes the current one when the run has to stop.
        options: When to look and what to do.
        folder: The folder that gets doctor.jsonl.
    """

    def __init__(self, trainer: Any, options: DoctorConfig, folder: Path) -> None:
        self._trainer = trainer
        self._stops = False
        self._watcher = Watcher(options, folder, lambda line: print(line, flush=True))

    def log(self, data: dict[str, Any], step: int) -> None:
        """Add a row, and stop the run after it if a fault asks for that: with a checkpoint, unless verl writes none."""
        if not self._watcher.see(step, data) or self._stops:
            return
        self._stops = True
        self._trainer.total_training_steps = step
        if self._trainer.config.trainer.save_freq > 0:
            self._trainer._save_checkpoint()

    def finish(self) -> None:
        """Do nothing; verl calls this at the end of a run."""


def attach(trainer: Any, options: DoctorConfig) -> None:
    """Let the doctor watch a run of verl's V1 trainer; call it in `on_train_begin`, when the trainer has its logger.

    Args:
        trainer: verl's V1 trainer.
        options: When to look and what to do. With `every=0` nothing happens.
    """
    if options.every:
        folder = Path(trainer.config.trainer.default_local_dir)
        trainer.logger.logger[BACKEND] = DoctorLogger(trainer, options, folder)
