"""A run's rows, also for TensorBoard, Weights & Biases or trackio. metrics.jsonl stays the record; this is a copy.

TensorBoard writes into RUN/tensorboard; the other two into the project `aepo`, under a run name that RUN/tracker.txt
keeps, so that a resumed run goes on as the same one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from aepo.errors import require

PROJECT, NAME_FILE = "aepo", "tracker.txt"


class Backend(Protocol):
    """Where numbers of a step go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One step's numbers by name."""

    def close(self) -> None:
        """Nothing more will come."""


def check_installed(tracker: str) -> None:
    """Raise `InvalidValue` where the tracker's package is missing. (A folder of its name is no package.)"""
    if tracker != "none":
        spec = importlib.util.find_spec(tracker)
        wanted = f"none where {tracker} is not installed; it needs: pip install 'aepo[{tracker}]'"
        require(spec is not None and spec.origin is not None, "tracker", tracker, wanted)


class Forward:
    """Hands rows on; use as a context manager. A tracker that fails is reported once, counted, and stops nothing.

    tracker: a name in `BACKENDS`, or none. settings: the run's, for the tracker's own page. first: the step that the
    run starts or resumes with. say: prints a line.
    """

    def __init__(
        self, tracker: str, run: Path, settings: Mapping[str, Any], first: int, say: Callable[[str], None]
    ) -> None:
        self.failures = 0
        self._tracker, self._say = tracker, say
        self._of = (run, settings, first)
        self._backend: Backend | None = None

    def __enter__(self) -> Forward:
        if self._tracker != "none":
            self._guarded(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._backend is not None:
            self._guarded(self._backend.close)
        if self.failures:
            self._say(f"tracker: {self._tracker} failed {self.failures} times; metrics.jsonl has every row")

    def step(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl, after it was written there."""
        if self._backend is not None:
            # The step goes beside its numbers; trackio warns about a number of that name.
            log, values = self._backend.log, numbers({name: row[name] for name in row if name != "step"})
            self._guarded(lambda: log(row["step"], values))

    def _start(self) -> None:
        self._backend = BACKENDS[self._tracker](*self._of)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self.failures += 1
            if self.failures == 1:
                reason = (str(error).strip().splitlines() or [""])[0]
                self._say(f"tracker: {self._tracker} failed ({type(error).__name__}: {reason}); the run goes on")


def numbers(row: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers of a row, true as 1; those of an inner table as `table/name`."""
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


# --- the trackers -------------------------------------------------------------------------------------------


class TensorBoard:
    """Event files; on resume the steps that are done again replace the old ones."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        package: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = package.SummaryWriter(str(run / "tensorboard"), purge_step=first)
        if not first:
            self._writer.add_text("config", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar each."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """The last event file."""
        self._writer.close()


class WandB:
    """A run of Weights & Biases, online or not as its own environment variables say."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        name, package = run_name(run), importlib.import_module("wandb")
        self._run = package.init(
            project=PROJECT, id=name, name=name, dir=str(run), config=dict(settings), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All at once; W&B itself leaves out steps that it has already."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """The end of the run."""
        self._run.finish()


class Trackio:
    """A run of trackio, local unless its own environment variables say otherwise."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        self._package = importlib.import_module("trackio")
        self._package.init(project=PROJECT, name=run_name(run), config=dict(settings), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """All at once."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """The end of the run."""
        self._package.finish()


def run_name(run: Path) -> str:
    """The folder's name and eight random letters, the same for every part of a run."""
    file = run / NAME_FILE
    if not file.exists():
        file.write_text(f"{run.resolve().name}-{secrets.token_hex(4)}")
    return file.read_text()


BACKENDS: Mapping[str, Callable[[Path, Mapping[str, Any], int], Backend]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
