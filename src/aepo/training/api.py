"""`train` runs a training from Python, on the same runner as the command line, and returns a `TrainedRun`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from aepo.config import Config, default_config, override
from aepo.convert import tree
from aepo.errors import InvalidValue
from aepo.model.policy import Policy
from aepo.tasks import Data, Task
from aepo.tasks.functions import Function
from aepo.training import runner
from aepo.training.callbacks import Callback
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.evaluate import Evaluation
from aepo.training.folder import EVALUATIONS, METRICS, SAMPLES, read_rows

Reward = Callable[..., Any] | str
"""A reward function, or `module:function`, or `graded` for the grader of known answers."""


def train(
    model: str | Path = "builtin",
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
        model: `builtin`, a folder in Hugging Face format, or a name on the hub.
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
    given = {name.replace("__", "."): value for name, value in settings.items()}
    if target is not None:
        given["control.target"] = target
    folder = Path(out) if out is not None else Path("runs") / f"{method}-{time.strftime('%Y%m%d-%H%M%S')}"
    functions: dict[str, Callable[..., Any]] = {}
    if data is None and reward is not None:
        raise InvalidValue("reward", reward, "given together with data: the built-in task has its own reward")
    if data is not None:
        given |= {"task": {"name": "data", "train": _source(data, folder), **_rewards(reward, functions)}}
    config = override(default_config(method), tree({"model": str(model), **given}))
    config = runner.located(_with_functions(config, functions))
    try:
        runner.start(config, folder, quiet=quiet, callbacks=callbacks)
    except KeyboardInterrupt:
        pass  # the run is saved; what is there is returned
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
            import pandas
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
        config = runner.resume(self.folder, quiet=quiet, settings=changes, callbacks=callbacks, task=self.config.task)
        return TrainedRun(self.folder, config)

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


def _rewards(
    reward: Reward | Sequence[Reward] | None, functions: dict[str, Callable[..., Any]]
) -> dict[str, Any]:
    """Return the task's settings for these rewards. Functions are put into `functions` by the name of their setting."""
    if reward is None or reward == "graded":
        return {}
    if isinstance(reward, str) or callable(reward):
        return {"verifier": {"name": "function", "path": _path(reward, functions)}}
    return {"rewards": [_path(one, functions) for one in reward]}


def _path(reward: Reward, functions: dict[str, Callable[..., Any]]) -> str:
    if isinstance(reward, str):
        return reward
    name = f"python:{getattr(reward, '__name__', type(reward).__name__)}"
    functions[name] = reward
    return name


def _with_functions(config: Config, functions: Mapping[str, Callable[..., Any]]) -> Config:
    """Give the task's verifiers the functions that exist in this process only."""
    task: Task = config.task
    if isinstance(task, Data):
        for verifier in task.judges:
            if isinstance(verifier, Function) and verifier.path in functions:
                verifier.bind(functions[verifier.path])
    return config
