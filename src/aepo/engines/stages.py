"""Stages of a step that every engine shares: rollouts to samples, the loss of some rows, what is logged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import Measured, Scored, State, Step
from aepo.entropy.by_position import means_by_position
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import LossOutput, policy_loss
from aepo.types import BatchStatistics, Metric, Rollout, Sample


def rewarded(rollouts: Iterable[Rollout]) -> list[Rollout]:
    """Return the rollouts whose reward is a finite number; the others are left out of everything."""
    return [rollout for rollout in rollouts if math.isfinite(rollout.reward)]


def with_advantages(
    algorithm: Algorithm,
    rollouts: Sequence[Rollout],
    extra_groups: Set[int],
    state: State,
    step: Step,
) -> tuple[list[Sample], list[Sample]]:
    """Ordinary and extra samples, each with the advantage within its own group.

    extra_groups: the numbers (`Completion.group`) of the groups that the control planned. `InvalidValue` when there
    is no ordinary rollout.
    """
    if all(rollout.completion.group in extra_groups for rollout in rollouts):
        raise InvalidValue("reward", "an error or NaN for every completion of a step", "a finite number")
    rewards = torch.tensor(algorithm.control.reward(rollouts, state, step))
    groups = torch.tensor([rollout.completion.group for rollout in rollouts])
    advantages = algorithm.advantage(rewards, groups).tolist()
    samples = [
        Sample(rollout, advantage, extra=rollout.completion.group in extra_groups)
        for rollout, advantage in zip(rollouts, advantages, strict=True)
    ]
    return [s for s in samples if not s.extra], [s for s in samples if s.extra]


def loss(
    algorithm: Algorithm,
    part: Scored,
    new: BatchStatistics,
    weights: Tensor,
    state: State,
    penalty: Tensor | None = None,
) -> LossOutput:
    """The loss of a microbatch, with what the control does in every pass.

    part: its advantages are those after `shape`, [B, T]. new: the current policy's statistics, with gradient.
    weights: [B, T], the aggregate over the whole minibatch. penalty: a further term per token, [B, T].
    """
    control = algorithm.control
    terms = [term for term in (control.penalty(part, new, state), penalty) if term is not None]
    return policy_loss(
        new.logprobs,
        part.old.logprobs,
        control.reshape(part.batch.advantages, part, new, state),
        weights,
        algorithm.surrogate,
        sum(terms[1:], terms[0]) if terms else None,
        control.bounds(part, state),
    )


def measure(
    ordinary: Sequence[Sample], extra: Sequence[Sample], scored: Scored, mixed_sampled_entropy: Metric
) -> Measured:
    """Return what a step measured, for `Control.update`.

    Args:
        ordinary: The step's ordinary samples.
        extra: All extra samples that were drawn.
        scored: The mixed batch, with advantages as they were before `shape`.
        mixed_sampled_entropy: -log pi of the trained tokens, extra rows included, nats.
    """
    rewards = [sample.rollout.reward for sample in ordinary]
    return Measured(
        entropy=Metric.of(scored.entropy, scored.ordinary),
        mixed_sampled_entropy=mixed_sampled_entropy,
        reward=Metric(math.fsum(rewards), len(rewards)),
        extra=extra,
        scored=scored,
    )


def measurements(measured: Measured, samples: Sequence[Sample], sampler: bool) -> dict[str, Any]:
    """What docs/metrics.md documents of a step's data; over the ordinary rows unless the name says extra.

    samples: the mixed batch. sampler: whether the batch holds the sampler's own log-probabilities at temperature 1.
    """
    scored, extra = measured.scored, measured.extra
    batch, ordinary = scored.batch, ~scored.batch.extra
    rewards, groups = batch.rewards[ordinary], batch.groups[ordinary]
    spread = [rewards[groups == group] for group in groups.unique()]
    gap = (scored.old.logprobs - batch.sampling_logprobs).abs()
    return {
        "entropy": measured.entropy.mean,
        "entropy_by_position": means_by_position(scored.entropy, scored.ordinary),
        "sampled_entropy": Metric.of(-scored.old.logprobs, scored.ordinary).mean,
        "reward": measured.reward.mean,
        "dead_groups": sum(bool((r == r[0]).all()) for r in spread) / len(spread),
        "length": batch.mask[ordinary].sum(1).mean().item(),
        "truncated": Metric.of(_truncated(samples)[ordinary.cpu()]).mean,
        "mismatch": Metric.of(gap, scored.ordinary).mean if sampler else None,
        "trained": int(batch.trained.sum()),
        "extra_completions": len(extra),
        "extra_used": sum(sample.extra for sample in samples),
        "extra_temperature": extra[0].rollout.completion.temperature if extra else None,
    }


def _truncated(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(sample.rollout.completion.truncated) for sample in samples])
