"""`aepo calibrate` measures what the base model does on the data, and proposes settings from it (docs/calibrate.md).

The measurement uses the first prompts of the training stream. It draws several completions of each prompt at
temperature 1, as a run does. Completions of one prompt are alike, so standard errors are over prompts and never over
tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from aepo.bars import counted
from aepo.config import Config, make_config, to_dict
from aepo.control.base import Needs, generator
from aepo.convert import parse_setting
from aepo.errors import require
from aepo.model.policy import Policy
from aepo.sampling.base import Sampler
from aepo.sampling.draw import WHOLE
from aepo.sampling.prompts import fitted, reward, take_prompts
from aepo.tasks import TASKS, Task
from aepo.training.runner import check_machine, make_sampler, model_folder
from aepo.types import Completion, Prompt, Request, Rollout, Sample, asked_for

# Number of completions that are sampled and scored at a time.
AT_ONCE = 512
# Group sizes that are measured.
GROUP_SIZES = (4, 8, 16, 32, 64)
# The smallest group size is proposed whose share of dead groups is at most this much above that of the largest size.
REVIVED = 0.1
# Targets as multiples of the base model's entropy. SHARE is proposed; LOWER and HIGHER are for comparison
# (docs/results.md).
SHARE, LOWER, HIGHER = 0.6, 0.45, 0.75
# No target is proposed if the standard error of the entropy is above this share of the entropy.
UNSURE = 0.125
# The wanted standard error of the sensor in one step, as a share of the entropy. It is a sixth of the distance
# between two of these targets.
SENSOR_ERROR = 0.025
# Smallest and largest number of prompts that is proposed.
PROMPTS = (16, 1024)
# LENGTH_QUANTILE: completions that are longer than this quantile may be cut. CUT: if a larger share of completions is
# cut, the real lengths are not known.
LENGTH_QUANTILE, CUT = 0.99, 0.02


@dataclass(frozen=True)
class PromptMeasurement:
    """`PromptMeasurement` holds what was measured on the completions of one prompt."""

    entropy: float
    """Sum of the exact entropy over all tokens of all completions, nats."""
    tokens: int
    """Number of tokens in all completions."""
    correct: int
    """Number of completions with a reward above 0.5."""
    lengths: tuple[int, ...]
    """Length of each completion that ended by itself, tokens."""
    truncated: int
    """Number of completions that were cut at the limit."""

    @property
    def samples(self) -> int:
        """Number of completions."""
        return len(self.lengths) + self.truncated


@dataclass(frozen=True)
class Measurement:
    """`Measurement` holds what was measured on the base model. Errors are standard errors over prompts."""

    prompts: int
    """Number of prompts."""
    samples: int
    """Number of completions of each prompt."""
    entropy: float
    """Exact entropy, mean over tokens, nats per token."""
    entropy_error: float
    """Standard error of `entropy`, nats per token."""
    accuracy: float
    """Share of correct completions, mean over prompts."""
    accuracy_error: float
    """Standard error of `accuracy`."""
    dead: Mapping[int, float]
    """For each group size, the share of groups whose completions are all right or all wrong."""
    length: int | None
    """The `LENGTH_QUANTILE` of the lengths of completions that ended by themselves, tokens; None if none did."""
    truncated: float
    """Share of completions that were cut at the limit."""
    limit: int
    """Largest length of a completion, tokens."""
    failures: int
    """Number of completions whose verifier failed."""
    rule: str = ""
    """What counts as right, in words."""

    def lines(self) -> list[str]:
        """Return the measurement as lines of text for the terminal."""
        dead = ", ".join(f"{share:.0%} at group size {size}" for size, share in self.dead.items())
        length = (
            "none ended by itself" if self.length is None else f"{LENGTH_QUANTILE:.0%} of those that end: {self.length}"
        )
        return [
            f"{self.prompts} prompts x {self.samples} completions at T = 1; +- standard error over prompts",
            f"entropy: {self.entropy:.4f} +- {self.entropy_error:.4f} nats per token, exact",
            f"accuracy: {self.accuracy:.3f} +- {self.accuracy_error:.3f} ({self.rule})",
            f"dead groups: {dead}",
            f"length: {length} tokens; {self.truncated:.1%} cut at {self.limit}",
            *([f"verifier failures: {self.failures}"] if self.failures else []),
        ]


@dataclass(frozen=True)
class Proposal:
    """`Proposal` is a proposed value of one setting."""

    setting: str
    """Dotted name of the setting."""
    value: str | None
    """The value as it is written in TOML; None if no value can be proposed."""
    reason: str
    """The reason for the value, or for the lack of one."""

    def line(self) -> str:
        """Return the proposal as one line of a TOML recipe."""
        if self.value is None:
            return f"# {self.setting}: no proposal. {self.reason}"
        return f"{self.setting} = {self.value}  # {self.reason}"


@dataclass(frozen=True)
class Base:
    """`Base` holds the model that is calibrated and its task. Nothing in it is trained."""

    task: Task
    """The task."""
    policy: Policy
    """The base model."""
    sampler: Sampler
    """The sampler that draws from the base model."""
    seed: int
    """Seed of the draws."""


# --- measuring ----------------------------------------------------------------------------------------------


def calibration_config(model: str, data: str, settings: Sequence[str]) -> Config:
    """Return the settings of a run for the calibration.

    Args:
        model: Folder or name of the base model.
        data: Name of a task; otherwise a file or a data set for the task `data`.
        settings: Further settings, each as NAME=VALUE.
    """
    chosen = {"task": data} if data in TASKS else {"task": "data", "task.train": data}
    return make_config(overrides={"model": model, **chosen, "evaluation.prompts": 1}, settings=settings)


def measure(config: Config, prompts: int, samples: int) -> Measurement:
    """Sample completions of the base model and measure them.

    Args:
        config: The settings of a run.
        prompts: Number of prompts, at least 2.
        samples: Number of completions of each prompt, at least the smallest group size.

    Raises:
        InvalidValue: The model, the data or a number cannot be used.
    """
    require(prompts >= 2, "--prompts", prompts, "at least 2: a standard error is over prompts")
    require(samples >= GROUP_SIZES[0], "--samples", samples, f"at least {GROUP_SIZES[0]}, the smallest group size")
    check_machine(config)
    config.task.check()
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    policy = Policy.load(model_folder(config), device, config.policy, config.seed, config.task.template())
    task = fitted(config.task, policy, config.seed)
    sampler = make_sampler(policy, config).with_cuts(WHOLE)
    sampler.refresh(policy)
    base = Base(task, policy, sampler, config.seed)
    asked = take_prompts(task, policy, config.seed, 0, prompts)
    answered: list[PromptMeasurement] = []
    failures, at_once = 0, max(1, AT_ONCE // samples)
    with counted("completions", "base model", error=True) as show:
        for first in range(0, prompts, at_once):

            def report(done: int, before: int = first * samples) -> None:
                show(before + done, prompts * samples)

            sampler.report = report
            some, failed = _answer(base, asked[first : first + at_once], samples, first)
            answered += some
            failures += failed
    return replace(summed_up(answered, task.max_tokens, failures), rule=task.right_rule.describe())


def _answer(base: Base, prompts: Sequence[Prompt], samples: int, first: int) -> tuple[list[PromptMeasurement], int]:
    completions = base.sampler.sample(
        [Request(prompt, group, samples) for group, prompt in enumerate(prompts)],
        max_tokens=base.task.max_tokens,
        generator=generator(base.seed, first, "calibration"),
    )
    judged = reward(base.task, base.policy, completions)
    right = {id(rollout.completion) for rollout in judged.rollouts if rollout.right}
    batch = base.policy.collate([Sample(Rollout(c, 0.0), 0.0) for c in completions])
    sums = asked_for(base.policy.score(batch, Needs()).entropy).double().sum(1).tolist()
    groups: list[list[tuple[Completion, float]]] = [[] for _ in prompts]
    for completion, entropy in zip(completions, sums, strict=True):
        groups[completion.group].append((completion, entropy))
    return [
        PromptMeasurement(
            entropy=math.fsum(entropy for _, entropy in group),
            tokens=sum(len(completion.tokens) for completion, _ in group),
            correct=sum(id(completion) in right for completion, _ in group),
            lengths=tuple(len(completion.tokens) for completion, _ in group if not completion.truncated),
            truncated=sum(completion.truncated for completion, _ in group),
        )
        for group in groups
    ], len(judged.failures)


def summed_up(answered: Sequence[PromptMeasurement], limit: int, failures: int = 0) -> Measurement:
    """Return the measurement over all prompts. Each prompt must have the same number of completions.

    Args:
        answered: What was measured on each prompt.
        limit: Largest length of a completion, tokens.
        failures: Number of completions whose verifier failed.
    """
    samples = answered[0].samples
    accuracies = [one.correct / samples for one in answered]
    accuracy = math.fsum(accuracies) / len(answered)
    entropy, entropy_error = ratio([one.entropy for one in answered], [one.tokens for one in answered])
    lengths = sorted(length for one in answered for length in one.lengths)
    return Measurement(
        prompts=len(answered),
        samples=samples,
        entropy=entropy,
        entropy_error=entropy_error,
        accuracy=accuracy,
        accuracy_error=ratio(accuracies, [1] * len(answered))[1],
        dead={size: dead_share(answered, size) for size in GROUP_SIZES if size <= samples},
        length=lengths[math.ceil(LENGTH_QUANTILE * len(lengths)) - 1] if lengths else None,
        truncated=sum(one.truncated for one in answered) / (samples * len(answered)),
        limit=limit,
        failures=failures,
    )


def ratio(totals: Sequence[float], counts: Sequence[float]) -> tuple[float, float]:
    """Return sum(totals) / sum(counts) over clusters, and its standard error.

    The standard error is linearised (Cochran, Sampling Techniques, 6.3). With n clusters it is
    sqrt(n / (n - 1) sum_i (total_i - ratio count_i)^2) / sum(counts).

    >>> ratio([1.0, 3.0], [1, 1])
    (2.0, 1.0)
    """
    whole, n = math.fsum(counts), len(totals)
    mean = math.fsum(totals) / whole
    residuals = (total - mean * count for total, count in zip(totals, counts, strict=True))
    return mean, math.sqrt(n / (n - 1) * math.fsum(residual**2 for residual in residuals)) / whole


def dead_share(answered: Sequence[PromptMeasurement], size: int) -> float:
    """Return the share of groups of this size that are all right or all wrong.

    This is the mean over prompts of p^G + (1 - p)^G. The estimate is unbiased. It counts groups that are drawn without
    replacement from a prompt's n completions, of which c are right: (C(c, G) + C(n - c, G)) / C(n, G).

    Args:
        answered: What was measured on each prompt.
        size: G, the group size, at most n.
    """
    shares = [
        (math.comb(one.correct, size) + math.comb(one.samples - one.correct, size)) / math.comb(one.samples, size)
        for one in answered
    ]
    return math.fsum(shares) / len(shares)


# --- proposing ----------------------------------------------------------------------------------------------


def proposals(found: Measurement, task: Task) -> list[Proposal]:
    """Return the proposed target and settings, each with its reason."""
    size = _group_size(found)
    return [*_targets(found), size, _prompts(found), *([_length(found)] if hasattr(task, "max_response") else [])]


def recipe(config: Config, settings: Sequence[str], found: Measurement, proposed: Sequence[Proposal]) -> str:
    """Return a TOML file for `aepo train`, with the measurement above it as comments.

    The file holds the model, the data and `settings` as they were given, and the proposals. A proposal replaces a given
    setting of the same name.
    """
    task = to_dict(config.task)
    given = {"model": config.model, **{f"task.{name}": task[name] for name in ("name", "train") if name in task}}
    for setting in settings:
        given |= dict([parse_setting(setting)])
    decided = {proposal.setting for proposal in proposed if proposal.value is not None}
    kept = [line for name, value in given.items() if name not in decided for line in _toml(name, value)]
    measured = [f"# {line}" for line in found.lines()]
    return "\n".join([*measured, *kept, *(proposal.line() for proposal in proposed), ""])


def _toml(name: str, value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [line for key, inner in value.items() for line in _toml(f"{name}.{key}", inner)]
    return [f"{name} = {json.dumps(value)}"]


def _targets(found: Measurement) -> list[Proposal]:
    if found.entropy <= 0 or found.entropy_error > UNSURE * found.entropy:
        reason = (
            f"the entropy is {found.entropy:.4f} +- {found.entropy_error:.4f} nats: too uncertain to aim at shares of "
            "it; measure with more --prompts"
        )
        return [Proposal("control.target", None, reason)]
    nats, lower, higher = (share * found.entropy for share in (SHARE, LOWER, HIGHER))
    reason = (
        f"{nats:.3f} nats, {SHARE:g} of the base model's {found.entropy:.3f}: on the built-in task, of six targets the "
        "highest that the default settings held in all five seeds, ahead of GRPO, which ended at 0.3x, in pass@1 and "
        f"pass@256; to compare, {LOWER:g}x ({lower:.3f}), held there too, and {HIGHER:g}x ({higher:.3f}), which scored "
        "no less there but was missed at the default weight"
    )
    return [Proposal("control.target", f'"{SHARE:g}x"', reason)]


def _group_size(found: Measurement) -> Proposal:
    sizes, largest = sorted(found.dead), found.dead[max(found.dead)]
    if largest > 1 - REVIVED:
        hard = "hard" if found.accuracy < 0.5 else "easy"
        reason = (
            f"{largest:.0%} of groups are dead even at {sizes[-1]} (accuracy {found.accuracy:.3f}): the data is too "
            f"{hard} for this model, and no group size makes up for that"
        )
        return Proposal("sampling.group_size", None, reason)
    size = next(size for size in sizes if found.dead[size] <= largest + REVIVED)
    if size == sizes[-1]:
        reason = (
            f"{largest:.0%} of groups are dead; the largest size measured, a larger one may revive more (--samples)"
        )
    else:
        reason = (
            f"{found.dead[size]:.0%} of groups are dead; {sizes[-1]}, the largest measured, would revive at most "
            f"{REVIVED:.0%} more ({largest:.0%})"
        )
    return Proposal("sampling.group_size", str(size), reason)


def _prompts(found: Measurement) -> Proposal:
    """Propose a number of prompts. Standard errors over prompts decrease with the square root of this number."""
    wanted = SENSOR_ERROR * found.entropy
    needed = found.prompts * (found.entropy_error / wanted) ** 2 if wanted > 0 else math.inf
    low, high = PROMPTS
    count = int(min(high, max(low, 2 ** math.ceil(math.log2(max(needed, 1))))) if math.isfinite(needed) else high)
    error = found.entropy_error * math.sqrt(found.prompts / count)
    reason = (
        f"the sensor's standard error in a step is then {error:.4f} nats; wanted at most {wanted:.4f}, a sixth of the "
        f"distance between the targets (from {low} to {high} prompts)"
    )
    return Proposal("sampling.prompts", str(count), reason)


def _length(found: Measurement) -> Proposal:
    if found.length is None or found.truncated > CUT:
        value = 2 * found.limit
        reason = (
            f"{found.truncated:.1%} of completions were cut at {found.limit}, so their lengths are not known; "
            "twice that, then measure again"
        )
    else:
        value = min(found.limit, 64 * math.ceil(found.length / 64))
        reason = (
            f"{LENGTH_QUANTILE:.0%} of completions end within {found.length} tokens ({found.truncated:.1%} were cut at "
            f"{found.limit}); the next multiple of 64. Answers may grow in training"
        )
    return Proposal("task.max_response", str(value), reason)
