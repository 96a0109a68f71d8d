"""`train` runs a training from Python, on the same runner as the command line, and returns a `TrainedRun`."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

from aepo.config import Config, make_config
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.plugins import register
from aepo.training import runner
from aepo.training.callbacks import Callback
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.evaluate import Evaluation
from aepo.training.folder import EVALUATIONS, METRICS, SAMPLES, read_rows

Reward = Callable[..., Any] | str
"""A reward function, or `module:function`, or `graded` for the grader of known answers."""


def train(
    model: Any = "builtin",
    data: str | Path | Iterable[Mapping[str, Any]] | None = None,
    reward: Reward | Sequence[Reward] | None = None,
    method: str = "aepo",
    target: float | str | None = None,
    *,
    out: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    quiet: bool = False,
    **settings: Any,
) -> TrainedRun:
    """Fine-tune a model and return the run.

    Args:
        model: `builtin`, a folder in Hugging Face format, a name on the hub, or a pair (model, tokenizer) that is
            loaded; it is saved into the run folder.
        data: Rows to train on: a file, a data set's name, or rows as tables (a list, a `datasets.Dataset`). Rows are
            written to the run folder. None takes the built-in task.
        reward: A reward function as TRL, verl or EasyR1 have it, `graded`, or a list of them, whose rewards are added.
            None grades the known answers of the data.
        method: The method, one of `aepo methods`.
        target: The entropy target, nats per token, or a schedule such as `0.6x`; None takes the method's own.
        out: The run folder; None takes a new one under runs/.
        callbacks: What is called after each step and evaluation.
        quiet: Whether to print nothing.
        **settings: Any other setting. A dot in its name is written as two underscores: `optimizer__lr=1e-5`.

    Returns:
        The run: finished, or stopped by a callback.

    Raises:
        InvalidValue: A value cannot be used.
        RunDiedError: The run cannot learn any more.

    >>> run = aepo.train(model="path/to/model", data=rows, reward=my_reward, target="0.6x", steps=50)
    >>> run.plot()
    """
    folder = Path(out) if out is not None else Path("runs") / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    given: dict[str, Any] = {name.replace("__", "."): value for name, value in settings.items()}
    given["model"] = _model(model, folder)
    if target is not None:
        given["control.target"] = target
    if data is None and reward is not None:
        raise InvalidValue("reward", reward, "given together with data: the built-in task has its own reward")
    if data is not None:
        given = {"task": "data", "task.train": _source(data, folder), **_rewards(reward), **given}
    config = make_config(method=method, overrides=given)
    with suppress(KeyboardInterrupt):  # The run is saved, and what is there is returned.
        runner.start(config, folder, quiet=quiet, callbacks=callbacks)
    return TrainedRun(folder, config)


class TrainedRun:
    """`TrainedRun` is a run folder with its policy.

    Args:
        folder: The run folder.
        config: The settings of the run.
    """

    def __init__(self, folder: Path, config: Config) -> None:
        self.folder, self.config = folder, config

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the rows of metrics.jsonl, one for each step (docs/metrics.md)."""
        return read_rows(self.folder / METRICS)

    def table(self) -> Any:
        """Return the metrics as a pandas DataFrame, one row for each step.

        Raises:
            InvalidValue: pandas is not installed.
        """
        try:
            pandas: Any = importlib.import_module("pandas")
        except ImportError:
            raise InvalidValue("table", "pandas is not installed", "called with it: pip install pandas") from None
        return pandas.DataFrame(self.metrics).set_index("step")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """Return some completions of each step: prompt, completion, answer, rewards, temperature."""
        return read_rows(self.folder / SAMPLES)

    @property
    def evaluations(self) -> list[dict[str, Any]]:
        """Return the evaluations, problem by problem; step 0 is the base model."""
        return read_rows(self.folder / EVALUATIONS)

    def plot(self) -> Any:
        """Return a matplotlib figure of entropy, target and reward."""
        from aepo.training.plot import figure

        return figure({self.config.method: self.metrics})

    @cached_property
    def policy(self) -> Policy:
        """Return the trained policy, from the newest checkpoint; `policy.model` and `policy.tokenizer` are inside."""
        saved = steps_saved(self.folder)
        return Policy.load(self.folder / FOLDER / f"step-{saved[-1]}", settings=self.config.policy)

    def evaluate(self, problems: int = 100, samples: int = 16) -> Evaluation:
        """Return an evaluation of the trained policy on the task's evaluation problems.

        Args:
            problems: Number of problems.
            samples: Number of completions of each problem, drawn at temperature 1.
        """
        return runner.evaluate_policy(self.policy, self.config, problems, samples)

    def resume(self, callbacks: Sequence[Callback] = (), quiet: bool = False, **settings: Any) -> TrainedRun:
        """Continue the run, for example with `steps=200`, and return it.

        Args:
            callbacks: What is called after each step and evaluation.
            quiet: Whether to print nothing.
            **settings: Settings that may change in a run; a dot is written as two underscores.
        """
        changes = [f"{name.replace('__', '.')}={json.dumps(value)}" for name, value in settings.items()]
        with suppress(KeyboardInterrupt):
            runner.resume(self.folder, quiet=quiet, settings=changes, callbacks=callbacks)
        return TrainedRun(self.folder, make_config(self.folder / "config.toml"))

    def __repr__(self) -> str:
        rows = self.metrics
        last = f", entropy {rows[-1]['entropy']:.3f} nats, reward {rows[-1]['reward']:.3f}" if rows else ""
        return f"TrainedRun({str(self.folder)!r}: {self.config.method}, {len(rows)} steps{last})"


def _source(data: str | Path | Iterable[Mapping[str, Any]], folder: Path) -> str:
    """Return the source of the rows; rows that are given as tables are written to the run folder."""
    if isinstance(data, str | Path):
        return str(data)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "data.jsonl"
    try:
        lines = [json.dumps(dict(row)) for row in data]
    except (TypeError, ValueError) as error:
        raise InvalidValue("data", type(data).__name__, f"a file, or rows that JSON can hold ({error})") from None
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def _model(model: Any, folder: Path) -> str:
    """Return the name or the folder of the model; a loaded one is saved into the run folder first."""
    if isinstance(model, str | Path):
        return str(model)
    wanted = "a name, a folder, or (model, tokenizer) of transformers"
    if not (isinstance(model, tuple) and len(model) == 2 and all(hasattr(part, "save_pretrained") for part in model)):
        raise InvalidValue("model", type(model).__name__, wanted)
    base = folder / "base"
    for part in model:
        part.save_pretrained(base)
    return str(base)


def _rewards(reward: Reward | Sequence[Reward] | None) -> dict[str, Any]:
    """Return the task's settings for these rewards."""
    if reward is None or reward == "graded":
        return {}
    if isinstance(reward, str) or callable(reward):
        return {"task.verifier": "function", "task.verifier.path": _path(reward)}
    return {"task.rewards": [_path(one) for one in reward]}


def _path(reward: Reward) -> str:
    return reward if isinstance(reward, str) else register(reward)
