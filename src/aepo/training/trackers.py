"""`Forward` copies the rows and the samples of a run to a tracker. metrics.jsonl and samples.jsonl stay the record.

The trackers are TensorBoard, Weights & Biases, trackio, MLflow and SwanLab. TensorBoard writes to RUN/tensorboard. The
others write to the project (MLflow: the experiment) `aepo`, under a run name that RUN/tracker.txt stores. A resumed run
therefore continues under the same name.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from aepo.catalogue import plain
from aepo.errors import require

PROJECT, NAME_FILE = "aepo", "tracker.txt"
# Seconds between two tables of samples. A table is a file in most trackers.
TABLE_EVERY = 60.0
# The columns of a table of samples, as in samples.jsonl.
COLUMNS = (
    *("step", "prompt_text", "completion", "answer", "reward", "rewards", "right"),
    *("temperature", "extra", "tokens"),
)


class Backend(Protocol):
    """`Backend` is the interface of a tracker."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers of one step by name."""

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Record samples, one row of `COLUMNS` each, with the step of the last one."""

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

    A failure of the tracker does not stop the run. The first failure is printed, and all failures are counted. Samples
    are collected, and sent as one table every `TABLE_EVERY` seconds and at the end.

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
        self._samples: list[Sequence[Any]] = []
        self._sent = time.monotonic()

    def __enter__(self) -> Forward:
        if self._tracker != "none":
            self._guarded(self._start)
        return self

    def __exit__(self, *_: object) -> None:
        if self._backend is not None:
            self._send_table()
            self._guarded(self._backend.close)
        if self.failures:
            self._say(f"tracker: {self._tracker} failed {self.failures} times; metrics.jsonl has every row")

    def step(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]] = ()) -> None:
        """Send one row of metrics.jsonl and its rows of samples.jsonl, after they were written to these files."""
        if self._backend is not None:
            # The step is a separate argument: trackio warns about a number that is named `step`.
            log, values = self._backend.log, numbers({name: row[name] for name in row if name != "step"})
            self._guarded(lambda: log(row["step"], values))
            self._samples += [[_plain(sample.get(name)) for name in COLUMNS] for sample in samples]
            if time.monotonic() - self._sent >= TABLE_EVERY:
                self._send_table()

    def _send_table(self) -> None:
        """Send the samples that were collected since the last table."""
        if self._samples and self._backend is not None:
            table, rows = self._backend.table, self._samples
            self._guarded(lambda: table(rows[-1][0], rows))
        self._samples, self._sent = [], time.monotonic()

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


def _plain(value: Any) -> Any:
    """Return the value of a cell. A nested table becomes its JSON."""
    return json.dumps(value) if isinstance(value, Mapping | list) else value


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

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Write the samples as text. TensorBoard has no tables, and shows Markdown."""
        lines = [COLUMNS, ["---"] * len(COLUMNS), *([plain(str(cell)) for cell in row] for row in rows)]
        self._writer.add_text("samples", "\n".join(f"| {' | '.join(line)} |" for line in lines), step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class WandB:
    """`WandB` writes to a run of Weights & Biases. Its own environment variables say whether it is online."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        name, self._package = run_name(run), importlib.import_module("wandb")
        self._run = self._package.init(
            project=PROJECT, id=name, name=name, dir=str(run), config=dict(settings), resume="allow"
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all numbers of the step. W&B itself leaves out steps that it already has."""
        self._run.log(dict(values), step=step)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Record the samples as a table of this step."""
        columns, data = list(COLUMNS), [list(row) for row in rows]
        self._run.log({"samples": self._package.Table(columns=columns, data=data, allow_mixed_types=True)}, step=step)

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

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Record the samples as a table of this step."""
        table = self._package.Table(columns=list(COLUMNS), data=[list(row) for row in rows])
        self._package.log({"samples": table}, step=step)

    def close(self) -> None:
        """End the run."""
        self._package.finish()


class MLflow:
    """`MLflow` writes to the experiment `aepo` of the server or folder that MLflow's environment variables name.

    The settings are parameters, and config.json among the artifacts; samples.json there is the table of samples.
    """

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        # Its bars and notes would tear the run's own progress apart.
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        self._package: Any = importlib.import_module("mlflow")
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        name, found = run_name(run), self._package.set_experiment(PROJECT).experiment_id
        name = name.replace("'", "-")  # it would end the text in the query
        query = f"attributes.run_name = '{name}'"
        known = self._package.MlflowClient().search_runs([found], query, max_results=1)
        started = self._package.start_run(**({"run_id": known[0].info.run_id} if known else {"run_name": name}))
        self._run = started.info.run_id
        if not known:  # MLflow refuses a parameter that changes, as the steps of a resumed run do
            self._package.log_params({key: str(value)[:500] for key, value in _flat(settings)})
        self._package.log_dict(dict(settings), "config.json", run_id=self._run)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all numbers of the step. MLflow has no `@` in names, so pass@1 becomes pass_at_1."""
        named = {re.sub(r"[^\w./ :-]", "_", name.replace("@", "_at_")): value for name, value in values.items()}
        self._package.log_metrics(named, step=step, run_id=self._run)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Append the samples to the table samples.json."""
        columns = {name: [row[place] for row in rows] for place, name in enumerate(COLUMNS)}
        self._package.log_table(columns, "samples.json", run_id=self._run)

    def close(self) -> None:
        """End the run."""
        self._package.end_run()


class SwanLab:
    """`SwanLab` writes to a run of SwanLab. SWANLAB_MODE says whether it is online, local or offline."""

    def __init__(self, run: Path, settings: Mapping[str, Any], first: int) -> None:
        self._package: Any = importlib.import_module("swanlab")
        name = run_name(run)
        # An id has letters, digits, - and _ alone; a resumed run is found by it.
        online = {"id": re.sub(r"[^\w-]", "-", name)[-64:], "resume": "allow"}
        self._run = self._package.init(
            project=PROJECT, name=name, log_dir=str(run / "swanlab"), config=dict(settings), **online
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record all numbers of the step."""
        self._run.log(dict(values), step=step)

    def table(self, step: int, rows: Sequence[Sequence[Any]]) -> None:
        """Record the samples as a table of this step."""
        table = self._package.echarts.Table()
        table.add(list(COLUMNS), [[_shown(cell) for cell in row] for row in rows])
        self._run.log({"samples": table}, step=step)

    def close(self) -> None:
        """End the run."""
        self._package.finish()


def _shown(cell: Any) -> Any:
    return "" if cell is None else cell


def _flat(settings: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    """Return each setting with its dotted name."""
    pairs: list[tuple[str, Any]] = []
    for key, value in settings.items():
        pairs += _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else [(f"{path}{key}", value)]
    return pairs


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
    "mlflow": MLflow,
    "swanlab": SwanLab,
}
