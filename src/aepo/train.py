"""The loop. One step, top to bottom, is `train_step`; everything around it loads, logs and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aepo.advantages import ADVANTAGES
from aepo.algorithm import Algorithm
from aepo.checkpoint import TrainState
from aepo.checks import InvalidValue
from aepo.collate import collate
from aepo.config import Config, OptimizerConfig
from aepo.control.base import ExtraGroup, Measured, Needs, Scored, Step
from aepo.losses import AGGREGATES, LossOutput, policy_loss
from aepo.policy import Policy
from aepo.sampling.base import Sampler
from aepo.tasks import Task, safe_reward
from aepo.types import Batch, Completion, Metric, Prompt, Request, Rollout, Sample, TokenStats

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What stays the same from step to step (the weights inside `policy` move)."""

    config: Config
    algorithm: Algorithm
    task: Task
    policy: Policy
    sampler: Sampler
    optimizer: torch.optim.Optimizer


def train_step(run: Run, state: TrainState) -> tuple[TrainState, Row, list[Sample]]:
    """Sample, reward, compare, mix, score, shape, update, measure."""
    config, control = run.config, run.algorithm.control
    clock = Clock()
    step = Step(state.step, config.sampling.prompts, config.sampling.group_size, config.seed)

    prompts = take_prompts(run, state.position)
    planned = control.plan(state.control, step)
    completions = run.sampler.sample(
        requests(prompts, step.group_size, planned),
        max_tokens=run.task.max_tokens,
        generator=step.generator("sampling"),
    )
    clock.lap("sampling")

    rollouts, failures = reward(run, completions)
    ordinary, extra = compare(rollouts, step.prompts, run.algorithm)
    samples = control.mix(ordinary, extra, state.control, step)
    batch = collate(samples, run.policy.pad_token_id).to(run.policy.device)
    old = run.policy.score(batch, control.needs(state.control))
    clock.lap("scoring")

    scored = Scored(batch, old)
    batch = replace(batch, advantages=control.shape(batch.advantages, scored, state.control))
    updated = update(run, Scored(batch, old), state, step)
    clock.lap("update")

    measured = Measured(
        step=step.number,
        entropy=Metric.of(old.entropy[~batch.extra], batch.mask[~batch.extra]),
        mixed_sampled_entropy=updated.sampled_entropy,
        reward=mean_reward(ordinary),
        extra=extra,
    )
    control_state = control.update(state.control, measured)
    row = {
        "step": step.number,
        **measurements(measured, scored, samples, extra, failures),
        **command(state.control, control_state),
        **updated.row(),
        "completions": len(completions),
        "tokens": sum(len(completion.tokens) for completion in completions),
        **clock.row(),
    }
    after = replace(state, step=state.step + 1, position=state.position + step.prompts, control=control_state)
    return after, row, samples


# --- sampling and rewards -----------------------------------------------------------------------------------


def take_prompts(run: Run, position: int) -> list[Prompt]:
    """The next problems of the stream, tokenised."""
    indices = range(position, position + run.config.sampling.prompts)
    problems = [run.task.train_problem(run.config.seed, index) for index in indices]
    return [Prompt(p.id, run.policy.encode(p.text), p.data) for p in problems]


def requests(prompts: Sequence[Prompt], group_size: int, planned: Sequence[ExtraGroup]) -> list[Request]:
    """The ordinary groups at temperature 1, numbered like their prompts, then the extra ones."""
    ordinary = [Request(prompt, group, group_size) for group, prompt in enumerate(prompts)]
    extra = [
        Request(prompts[planned_group.prompt], group, planned_group.count, planned_group.temperature)
        for group, planned_group in enumerate(planned, start=len(prompts))
    ]
    return ordinary + extra


def reward(run: Run, completions: Sequence[Completion]) -> tuple[list[Rollout], int]:
    """Rollouts, and how many completions were left out because their reward raised or was not finite."""
    texts = run.policy.decode([completion.tokens for completion in completions])
    rollouts = []
    for completion, text in zip(completions, texts, strict=True):
        value = safe_reward(run.task, completion.prompt.problem, text, completion.truncated)
        if math.isfinite(value):
            rollouts.append(Rollout(completion, value))
    return rollouts, len(completions) - len(rollouts)


def compare(rollouts: Sequence[Rollout], prompts: int, algorithm: Algorithm) -> tuple[list[Sample], list[Sample]]:
    """Ordinary and extra samples, each with the advantage within its own group."""
    if not any(rollout.completion.group < prompts for rollout in rollouts):
        raise InvalidValue("reward", "an error or NaN for every completion of a step", "a finite number")
    rewards = torch.tensor([rollout.reward for rollout in rollouts])
    groups = torch.tensor([rollout.completion.group for rollout in rollouts])
    advantages = ADVANTAGES[algorithm.advantage](rewards, groups).tolist()
    samples = [
        Sample(rollout, advantage, extra=rollout.completion.group >= prompts)
        for rollout, advantage in zip(rollouts, advantages, strict=True)
    ]
    return [s for s in samples if not s.extra], [s for s in samples if s.extra]


# --- the update ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Updated:
    """What the update saw, summed over its minibatches."""

    losses: Sequence[LossOutput]
    sampled_entropy: Metric
    gradient_norms: Sequence[float]

    def row(self) -> Row:
        """For the log."""
        total = Metric(0.0, 0)
        return {
            "ratio": sum((loss.ratio for loss in self.losses), total).mean,
            "clip_fraction": sum((loss.clipped for loss in self.losses), total).mean,
            "approximate_kl": sum((loss.approximate_kl for loss in self.losses), total).mean,
            "gradient_norm": sum(self.gradient_norms) / len(self.gradient_norms),
        }


def update(run: Run, scored: Scored, state: TrainState, step: Step) -> Updated:
    """`epochs` passes over the trained rows, one optimizer step for each minibatch."""
    config = run.config.optimizer
    losses: list[LossOutput] = []
    norms: list[float] = []
    sampled = Metric(0.0, 0)
    for epoch in range(config.epochs):
        shuffle = step.generator(f"minibatches {epoch}") if run.algorithm.control.shuffle else None
        for rows in minibatches(scored.batch, config.minibatches, shuffle):
            for loss, entropy in accumulate(run, scored, rows, state):
                losses.append(loss)
                sampled = sampled + entropy
            norms.append(optimizer_step(run.policy, run.optimizer, config))
    return Updated(losses, sampled, norms)


def minibatches(batch: Batch, count: int, shuffle: torch.Generator | None) -> list[Tensor]:
    """Row indices of each minibatch; ordinary and extra rows are each spread evenly over all of them."""
    trained, extra = batch.trained.cpu().nonzero()[:, 0], batch.extra.cpu()
    if shuffle is None:
        return [rows for rows in trained.tensor_split(count) if len(rows)]
    parts = []
    for rows in (trained[~extra[trained]], trained[extra[trained]]):
        parts.append(rows[torch.randperm(len(rows), generator=shuffle)].tensor_split(count))
    merged = [torch.cat(pair) for pair in zip(*parts, strict=True)]
    return [rows for rows in merged if len(rows)]


def accumulate(run: Run, scored: Scored, rows: Tensor, state: TrainState) -> list[tuple[LossOutput, Metric]]:
    """Backward passes of one minibatch, a microbatch at a time; token weights are the whole minibatch's."""
    control = run.algorithm.control
    weights = AGGREGATES[run.algorithm.aggregate](scored.batch.mask[rows])
    size = run.config.optimizer.microbatch or len(rows)
    needs = Needs(entropy_gradient=control.needs(state.control).entropy_gradient)
    outputs = []
    for micro, weight in zip(rows.split(size), weights.split(size), strict=True):
        part = select(scored, micro)
        new = run.policy.statistics(part.batch, needs, entropy=needs.entropy_gradient)
        output = policy_loss(
            new.logprobs,
            part.old.logprobs,
            part.batch.advantages,
            weight,
            run.algorithm.surrogate,
            control.penalty(part, new, state.control),
        )
        output.loss.backward()
        outputs.append((output, Metric.of(-new.logprobs.detach(), part.batch.mask)))
    return outputs


def select(scored: Scored, rows: Tensor) -> Scored:
    """These rows of a scored batch."""
    old = scored.old
    tempered = {temperature: values[rows] for temperature, values in old.tempered.items()}
    return Scored(scored.batch.select(rows), TokenStats(old.logprobs[rows], old.entropy[rows], tempered))


def optimizer_step(policy: Policy, optimizer: torch.optim.Optimizer, config: OptimizerConfig) -> float:
    """Clip, step, clear; the norm before clipping. A gradient that is not finite changes no weight."""
    norm = torch.nn.utils.clip_grad_norm_(policy.model.parameters(), config.max_grad_norm).item()
    if math.isfinite(norm):
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def make_optimizer(policy: Policy, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over all parameters."""
    return torch.optim.AdamW(
        policy.model.parameters(),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
    )


# --- what is logged (docs/metrics.md) -----------------------------------------------------------------------


def measurements(
    measured: Measured, scored: Scored, samples: Sequence[Sample], extra: Sequence[Sample], failures: int
) -> Row:
    """Entropy, reward and the state of the data; over the ordinary rows unless the name says extra."""
    batch, ordinary = scored.batch, ~scored.batch.extra
    mask, rewards, groups = batch.mask[ordinary], batch.rewards[ordinary], batch.groups[ordinary]
    spread = [rewards[groups == group] for group in groups.unique()]
    gap = (scored.old.logprobs - batch.sampling_logprobs).abs()
    return {
        "entropy": measured.entropy.mean,
        "sampled_entropy": Metric.of(-scored.old.logprobs[ordinary], mask).mean,
        "reward": measured.reward.mean,
        "dead_groups": sum(bool((r == r[0]).all()) for r in spread) / len(spread),
        "length": mask.sum(1).mean().item(),
        "truncated": Metric.of(_truncated(samples)[ordinary.cpu()]).mean,
        "mismatch": Metric.of(gap[ordinary], mask).mean,
        "reward_failures": failures,
        "extra_completions": len(extra),
        "extra_used": sum(sample.extra for sample in samples),
        "extra_temperature": extra[0].rollout.completion.temperature if extra else None,
    }


def command(before: Any, after: Any) -> Row:
    """The target and error at this step, and the command that was acted on in it."""
    return {
        "target_entropy": after.get("target_entropy"),
        "error": after.get("error"),
        "command": before.get("command"),
        "saturated": before.get("saturated", 0.0),
        "alarm": after.get("alarm", False),
    }


def mean_reward(samples: Sequence[Sample]) -> Metric:
    """Over rows."""
    return Metric(math.fsum(sample.rollout.reward for sample in samples), len(samples))


def _truncated(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(sample.rollout.completion.truncated) for sample in samples])


class Clock:
    """Wall-clock seconds of the parts of a step."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """The part that ends here."""
        now = time.perf_counter()
        self._laps[f"seconds_{name}"] = now - self._last
        self._last = now

    def row(self) -> Row:
        """The parts and their sum, up to now."""
        return {**self._laps, "seconds": time.perf_counter() - self._start}
