"""The entropy of a policy itself, apart from the noise of a step's reading: `aepo evaluate MODEL --entropy N`.

Every checkpoint of a run answers the same N prompts of the training stream, those after the last that the run takes.
The entropy is the mean over all tokens of the completions, as the sensor takes it (docs/entropy.md).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from aepo.bars import Bar
from aepo.config import Config
from aepo.control.base import Needs, generator
from aepo.entropy.standard_error import cluster_sums
from aepo.errors import require
from aepo.evaluation.evaluated_model import EvaluatedModel
from aepo.evaluation.options import Options
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.sampling.prompts import fitted, take_prompts
from aepo.training.checkpoint import FOLDER, steps_saved
from aepo.training.folder import METRICS, environment, read_rows, write_atomically
from aepo.training.runner import make_sampler
from aepo.types import Prompt, Request, Rollout, Sample, asked_for

RESULT = "entropy.json"
# Completions of each prompt, so that the error of their draw can be told from the difference of prompts.
COMPLETIONS = 2
# Options of the command that say how problems are asked and judged.
UNUSED = (
    *("benchmark", "data", "k", "temperature", "top_p", "top_k", "min_p", "stop", "grader", "prompt", "limit"),
    *("max_tokens", "max_rows", "system_prompt", "chat_template", "chat_template_kwargs"),
)
# Prompts that are sampled at a time.
AT_ONCE = 256


@dataclass(frozen=True)
class PolicyEntropy:
    """`PolicyEntropy` is the entropy of one checkpoint on the fixed prompts."""

    step: int | None
    """The number of finished steps; None for a model of no run."""
    entropy: float
    """Nats per token."""
    se: float
    """The standard error by the draw of the completions of these prompts, nats per token."""
    target: float | None = None
    """The target of the next step, nats per token (of the last step, after it); None without one."""
    reading: float | None = None
    """What the next step read of this policy on its own prompts, nats per token."""

    @property
    def error(self) -> float | None:
        """Return target minus entropy, nats per token."""
        return None if self.target is None else self.target - self.entropy


def measure_entropy(options: Options, model: EvaluatedModel) -> dict[str, Any]:
    """Measure every checkpoint of a run, or one model; write entropy.json, and print one table.

    Args:
        options: The options of the command; `options.entropy` is the number of prompts.
        model: The model. A run stands for all its checkpoints.

    Returns:
        The content of entropy.json.

    Raises:
        InvalidValue: An option has no meaning here.
    """
    for name in UNUSED:
        require(
            not getattr(options, name), f"--{name.replace('_', '-')}", getattr(options, name), "left out with --entropy"
        )
    assert options.entropy is not None
    config = model.config(options.task, options.set, None)
    measured = list(_measured(options, model, config, options.entropy))
    device = "cuda" if options.device != "cpu" and torch.cuda.is_available() else "cpu"
    result = {
        "model": model.name,
        "prompts": options.entropy,
        "completions": COMPLETIONS,
        "seed": options.seed,
        "entropies": [asdict(one) for one in measured],
        **_errors(measured),
        "environment": environment(torch.device(device)),
    }
    file = (options.out or model.run or Path("runs")) / RESULT
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(result, indent=2))
    _show(measured, result)
    print(f"written: {file}")
    return result


def _measured(options: Options, model: EvaluatedModel, config: Config, count: int) -> Iterator[PolicyEntropy]:
    whole_run = model.run is not None and Path(model.name) == model.run
    places: list[tuple[str | None, int | None]] = [(model.folder, None)]
    if whole_run and model.run is not None:
        places = [(str(model.run / FOLDER / f"step-{step}"), step) for step in steps_saved(model.run)]
    rows = {row["step"]: row for row in read_rows(model.run / METRICS)} if whole_run and model.run else {}
    with Bar(len(places) * count, "prompts") as bar:
        for folder, step in places:
            policy = replace(model, folder=folder).load(config, options.device, over_length=options.over_length)
            task = fitted(config.task, policy, config.seed)
            after_the_run = config.steps * config.sampling.prompts
            prompts = take_prompts(task, policy, config.seed, after_the_run, count)
            sampler = make_sampler(policy, config)
            sampler.refresh(policy)
            entropy, se = policy_entropy(policy, sampler, prompts, task.max_tokens, options.seed, bar)
            row = rows.get((step or 0) + 1, {})
            target = (row or rows.get(step, {})).get("target_entropy")
            yield PolicyEntropy(step, entropy, se, target, row.get("entropy"))


def policy_entropy(
    policy: Policy, sampler: Sampler, prompts: Sequence[Prompt], max_tokens: int, seed: int, bar: Bar | None = None
) -> tuple[float, float]:
    """Return the entropy of a policy on these prompts, and its standard error by the draw of completions, both in nats.

    Args:
        policy: The policy.
        sampler: It draws from the policy at T = 1.
        prompts: The prompts.
        max_tokens: The length limit of a completion, tokens.
        seed: The seed of the draws.
        bar: What counts the prompts that are done.
    """
    totals: list[float] = []
    sizes: list[float] = []
    for first in range(0, len(prompts), AT_ONCE):
        some = prompts[first : first + AT_ONCE]
        requests = [Request(prompt, group, COMPLETIONS, 1.0) for group, prompt in enumerate(some)]
        draws = generator(seed, first, "entropy of the policy")
        completions = sampler.sample(requests, max_tokens=max_tokens, generator=draws)
        batch = policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in completions])
        entropy = asked_for(policy.score(batch, Needs()).entropy)
        _, sums, counts = cluster_sums(entropy, batch.mask, batch.groups.new_tensor(range(len(completions))))
        totals += sums.tolist()
        sizes += counts.tolist()
        if bar is not None:
            bar.add(len(some))
    mean = math.fsum(totals) / math.fsum(sizes)
    residuals = [total - mean * size for total, size in zip(totals, sizes, strict=True)]
    return mean, math.sqrt(_within(residuals)) / math.fsum(sizes)


def _within(residuals: Sequence[float]) -> float:
    """Return the variance of the sum of all residuals, from the differences of completions of the same prompt."""
    groups = [residuals[i : i + COMPLETIONS] for i in range(0, len(residuals), COMPLETIONS)]
    centred = (value - math.fsum(group) / COMPLETIONS for group in groups for value in group)
    return COMPLETIONS / (COMPLETIONS - 1) * math.fsum(value**2 for value in centred)


def _errors(measured: Sequence[PolicyEntropy]) -> dict[str, float]:
    """Return the mean and the root mean square of the errors of the second half of the checkpoints, nats."""
    errors = [one.error for one in measured[len(measured) // 2 :] if one.error is not None]
    if not errors:
        return {}
    mean_square = math.fsum(error**2 for error in errors) / len(errors)
    return {"mean_error": math.fsum(errors) / len(errors), "rmse": math.sqrt(mean_square)}


def _show(measured: Sequence[PolicyEntropy], result: dict[str, Any]) -> None:
    table = Table("step", "entropy", "standard error", "target", "error", "the step's reading", box=SIMPLE_HEAD)
    for one in measured:
        numbers = (one.entropy, one.se, one.target, one.error, one.reading)
        cells = ("" if number is None else f"{number:.4f}" for number in numbers)
        table.add_row("" if one.step is None else str(one.step), *cells)
    console = Console()
    console.print(table)
    about = (
        f"nats per token, on {result['prompts']} prompts x {result['completions']} completions, the same for all rows"
    )
    console.print(about, highlight=False)
    if "rmse" in result:
        text = f"second half: mean error {result['mean_error']:+.4f}, RMSE {result['rmse']:.4f} nats"
        console.print(text, highlight=False)
