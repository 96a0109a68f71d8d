"""`Forward` copies the rows of a run to TensorBoard, Weights & Biases or trackio. metrics.jsonl stays the record.

TensorBoard writes to RUN/tensorboard. Weights & Biases and trackio write to the project `aepo`, under a run name that
RUN/tracker.txt stores. A resumed run therefore continues under the same name.
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
    """`Backend` is the interface of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step by name."""

    def close(self) -> None:
        """End the tracker's run."""


def check_installed(tracker: str) -> None:
    """Check that the tracker's package is installed. (A folder of the same name is not a package.)

    Raises:
        InvalidValue: The package is not installed.
    """
    if tracker != "none":
        spec = importlib.util.find_spec(tracker)
        wanted = f"none where {tracker} is not installed; it needs: pip install 'aepo[{tracker}]'"
        require(spec is not None and spec.origin is not None, "tracker", tracker, wanted)


class Forward:
    """`Forward` sends the rows of a run to a tracker. It is a context manager.

    A failure of the tracker does not stop the run. The first failure is printed, and all failures are counted.

    Args:
        tracker: A name in `BACKENDS`, or none.
        run: The run folder.
        settings: The settings of the run, for the tracker's own page.
        first: The step that the run starts or resumes with.
        say: A function that prints one line.
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
        """Send one row of metrics.jsonl, after it was written to that file."""
        if self._backend is not None:
            # The step is a separate argument: trackio warns about a number that is named `step`.
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
    """Return the finite numbers of a row by name; true counts as 1.

    A number inside a nested table gets the name `table/name`.
    """
    found: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            found |= numbers(value, f"{prefix}{name}/")
        elif isinstance(value, bool | int | float) and math.isfinite(value):
            found[f"{prefix}{name}"] = float(value)
    return found


# --- the trackers -------------------------------------------------------------------------------------------


class TensorBoard:
    """`TensorBoard` writes event files. After a resume, the steps that are done again replace the old ones."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        package: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = package.SummaryWriter(str(run / "tensorboard"), purge_step=first)
        if not first:
            self._writer.add_text("config", "\n".join(f"    {name} = {value}" for name, value in settings.items()))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """`WandB` writes to a run of Weights & Biases. Its own environment variables say whether it is online."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        name, package = run_name(run), importlib.import_module("wandb")
        self._run = package.init(
            project=PROJECT, id=name, name=name, dir=str(run), config=dict(settings), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all numbers of the step. W&B itself leaves out steps that it already has."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()


class Trackio:
    """`Trackio` writes to a run of trackio. The run is local unless trackio's environment variables say otherwise."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        self._package = importlib.import_module("trackio")
        self._package.init(project=PROJECT, name=run_name(run), config=dict(settings), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all numbers of the step."""
        self._package.log(dict(values), step=step)

    def close(self) -> None:
        """End the run."""
        self._package.finish()


def run_name(run: Path) -> str:
    """Return the run's name: the folder's name and eight random hexadecimal digits, stored in RUN/tracker.txt."""
    file = run / NAME_FILE
    if not file.exists():
        file.write_text(f"{run.resolve().name}-{secrets.token_hex(4)}")
    return file.read_text()


BACKENDS: Mapping[str, Callable[[Path, Mapping[str, Any], int], Backend]] = {
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "trackio": Trackio,
}
