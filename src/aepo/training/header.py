"""`header` says what a run trains, on what and how, in lines of at most 80 columns where names allow it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from aepo.config import Config
from aepo.model.memory import GIB, Fit
from aepo.sampling.prompts import ends_line
from aepo.tasks import Data
from aepo.training.progress import data_line
from aepo.training.step import Run


def header(run: Run, out: Path) -> Iterator[str]:
    """Yield the lines: method, model, task, reward, optimizer, folder."""
    config, policy = run.config, run.policy
    sampling = config.sampling
    target = getattr(config.control, "target", None)
    side = {"at-least": " at least", "at-most": " at most"}.get(getattr(config.control, "hold", "at"), "")
    held = "" if target is None else f", target{side} {target} nats"
    yield f"method: {config.method}{held}; {config.steps} steps of {sampling.prompts} prompts x {sampling.group_size}"
    total = sum(parameter.numel() for parameter in policy.model.parameters())
    trained = sum(parameter.numel() for parameter in policy.model.parameters() if parameter.requires_grad)
    yield f"model: {config.model}"
    yield f"  {_millions(total)} parameters, {_millions(trained)} trained, {config.policy.dtype} on {policy.device}"
    yield f"  {ends_line(policy.ends, sampling.stops)}, or after {run.task.max_tokens} tokens"
    yield f"task: {type(run.task).__name__.lower()}, {_reward(config)}; right: {run.task.right_rule.describe()}"
    if run.task.facts():
        yield f"  {data_line(run.task.facts())}"
    yield from optimizer_lines(config, run.fit)
    yield f"folder: {out}"


def optimizer_lines(config: Config, fit: Fit | None) -> Iterator[str]:
    """Yield the learning rate with its schedule, how an update is cut, and what is done by time."""
    optimizer = config.optimizer
    warmup = f", warm-up {optimizer.warmup} steps" if optimizer.warmup else ""
    updates = optimizer.minibatches * optimizer.epochs
    yield f"optimizer: AdamW, lr {optimizer.lr:g}, {optimizer.schedule}{warmup}, {updates} updates in a step"
    if fit is not None:
        rows = "all rows of a minibatch" if fit.microbatch is None else f"{fit.microbatch} rows"
        again = ", gradient checkpointing" if fit.checkpointing else ""
        yield f"  {rows} at once{again}: about {fit.needed / GIB:.2g} of {fit.memory / GIB:.3g} GiB for an update"
    if fit is not None and fit.saved is not None:
        yield f"  a prompt is computed once for all its completions: at least {fit.saved:.0%} fewer operations"
    for name, settings in (("evaluation", config.evaluation), ("checkpoint", config.checkpoint)):
        if settings.every == "auto":
            yield f"  {name}: every {settings.minutes:g} minutes, and after the last step"


def _reward(config: Config) -> str:
    task = config.task
    if not isinstance(task, Data):
        return "the task's own reward"
    if task.rewards:
        weights = task.reward_weights or (1.0,) * len(task.rewards)
        return "reward " + " + ".join(f"{w:g} {path}" for w, path in zip(weights, task.rewards, strict=True))
    return f"reward {getattr(task.verifier, 'path', '') or task.verifier.name}"


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} M" if count < 1e9 else f"{count / 1e9:.3g} B"
