"""`DoctorCallback` lets the doctor watch a run of TRL, Unsloth or any other trainer built on transformers' `Trainer`.

trainer = GRPOTrainer(..., callbacks=[DoctorCallback(stop_on="sure")])
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import TrainerCallback

from aepo.doctor.live import DoctorConfig, Watcher


class DoctorCallback(TrainerCallback):
    """`DoctorCallback` examines the trainer's log while the run goes on (docs/doctor.md).

    Every new fault is printed and appended to doctor.jsonl in the output folder. Only the first process does that.

    Args:
        every: Logged steps between two looks; with `logging_steps=1` these are the trainer's steps.
        stop_on: The confidence of a fault from which the run is stopped, after a checkpoint; `never` only warns.
        webhook: Address that gets each fault as JSON; None takes the environment variable AEPO_DOCTOR_WEBHOOK.

    Raises:
        InvalidValue: An argument cannot be used.
    """

    def __init__(
        self, every: int = 10, stop_on: Literal["never", "likely", "sure"] = "never", webhook: str | None = None
    ) -> None:
        self.options = DoctorConfig(every=every, stop_on=stop_on, webhook=webhook)
        self._watcher: Watcher | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin with the rows that a resumed run has logged before."""
        if not state.is_world_process_zero:
            return
        self._watcher = Watcher(self.options, Path(args.output_dir), lambda line: print(line, flush=True))
        for row in state.log_history:
            if "step" in row:
                self._watcher.add(int(row["step"]), row)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> Any:
        """Examine the log if it is time; stop all processes together if a fault is sure enough."""
        stop = self._watcher is not None and self._watcher.see(int(state.global_step), logs or {})
        if self.options.stop_on != "never" and _of_first_process(stop):
            control.should_save = True
            control.should_training_stop = True
        return control


def _of_first_process(stop: bool) -> bool:
    """Return what the first process decided; all processes log at the same steps."""
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    if PartialState().num_processes == 1:
        return stop
    decided = [stop]
    broadcast_object_list(decided, from_process=0)
    return bool(decided[0])
