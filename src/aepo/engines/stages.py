"""This module holds the stages of a step that every engine shares.

The stages are the advantages of the rollouts, the loss of a microbatch, what a step measured, and the numbers for the
log.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.control.base import Measured, Scored, State, Step
from aepo.engines.right import RightRule
from aepo.entropy.by_position import means_by_position
from aepo.entropy.standard_error import standard_error
from aepo.errors import InvalidValue
from aepo.loss.policy_loss import LossOutput, policy_loss
from aepo.types import BatchStatistics, Metric, Rollout, Sample


def rewarded(rollouts: Iterable[Rollout], rule: RightRule = RightRule()) -> list[Rollout]:
    """Return the rollouts of a step whose reward is a finite number, each with `right` set by the rule.

    No later stage sees the others.
    """
    return rule.marked([rollout for rollout in rollouts if math.isfinite(rollout.reward)])


def with_advantages(
    algorithm: Algorithm,
    rollouts: Sequence[Rollout],
    extra_groups: Set[int],
    state: State,
    step: Step,
) -> tuple[list[Sample], list[Sample]]:
    """Return the ordinary and the extra samples, each with its advantage within its own group.

    Args:
        algorithm: It gives the advantage, and the control that may change the rewards.
        rollouts: All rollouts of the step with a finite reward.
        extra_groups: The numbers (`Completion.group`) of the groups that the control planned.
        state: The state of the control.
        step: The place of the step in the run.

    Returns:
        The samples of the ordinary groups, then those of the extra groups.

    Raises:
        InvalidValue: There is no ordinary rollout.
    """
    if all(rollout.completion.group in extra_groups for rollout in rollouts):
        raise InvalidValue("reward", "an error or NaN for every completion of a step", "a finite number")
    rewards = torch.tensor(algorithm.control.reward(rollouts, state, step))
    groups = torch.tensor([rollout.completion.group for rollout in rollouts])
    right = torch.tensor([rollout.right for rollout in rollouts])
    advantages = algorithm.advantage(rewards, groups, right).tolist()
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
    """Return the loss of a microbatch, after the control's hooks `reshape`, `bounds` and `penalty`.

    Args:
        algorithm: It gives the surrogate and the control.
        part: The microbatch; its advantages [B, T] are those after `shape`. Its correction, if it has one, multiplies
            the objective of each token.
        new: The statistics under the current policy, with gradient.
        weights: The aggregate over the whole minibatch, [B, T].
        state: The state of the control.
        penalty: A further term [B, T] that is added to the loss of each token.
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
        control.bounds(part, new, state),
        reinforced=part.batch.extra[:, None] & part.batch.mask.bool() if control.reinforces_extra else None,
        correction=part.correction,
    )


def measure(
    ordinary: Sequence[Sample], extra: Sequence[Sample], scored: Scored, mixed_sampled_entropy: Metric
) -> Measured:
    """Return what a step measured, for `Control.update`.

    Args:
        ordinary: The ordinary samples of the step.
        extra: All extra samples that were drawn.
        scored: The mixed batch, with advantages as they were before `shape`.
        mixed_sampled_entropy: -log pi of the trained tokens, extra rows included, nats per token.
    """
    rewards = [sample.rollout.reward for sample in ordinary]
    right = sum(sample.rollout.right for sample in ordinary)
    return Measured(
        entropy=Metric.of(scored.entropy, scored.ordinary),
        mixed_sampled_entropy=mixed_sampled_entropy,
        reward=Metric(math.fsum(rewards), len(rewards)),
        right=Metric(right, len(rewards)),
        extra=extra,
        scored=scored,
        entropy_se=standard_error(scored.entropy, scored.ordinary, scored.batch.groups),
        prompts={sample.rollout.completion.group: sample.rollout.completion.prompt.id for sample in ordinary},
    )


def measurements(measured: Measured, samples: Sequence[Sample], sampler: bool) -> dict[str, Any]:
    """Return the numbers about a step's data that docs/metrics.md documents, by name.

    A number is over the ordinary rows, unless its name says extra.

    Args:
        measured: What the step measured.
        samples: The samples of the mixed batch, in its order.
        sampler: Whether the batch holds the sampler's own log-probabilities at temperature 1.
    """
    scored, extra = measured.scored, measured.extra
    batch, ordinary = scored.batch, ~scored.batch.extra
    rewards, groups = batch.rewards[ordinary], batch.groups[ordinary]
    spread = [rewards[groups == group] for group in groups.unique()]
    gap = (scored.old.logprobs - batch.sampling_logprobs).abs()
    return {
        "entropy": measured.entropy.mean,
        "entropy_se": None if math.isnan(measured.entropy_se) else measured.entropy_se,
        "entropy_by_position": means_by_position(scored.entropy, scored.ordinary),
        "sampled_entropy": Metric.of(-scored.old.logprobs, scored.ordinary).mean,
        "reward": measured.reward.mean,
        "right": measured.right.mean,
        "reward_min": rewards.min().item(),
        "reward_max": rewards.max().item(),
        **_reward_parts(samples),
        "dead_groups": sum(bool((r == r[0]).all()) for r in spread) / len(spread),
        "length": batch.mask[ordinary].sum(1).mean().item(),
        "truncated": Metric.of(_truncated(samples)[ordinary.cpu()]).mean,
        "mismatch": Metric.of(gap, scored.ordinary).mean if sampler else None,
        "trained": int(batch.trained.sum()),
        "extra_completions": len(extra),
        "extra_used": sum(sample.extra for sample in samples),
        "extra_temperature": extra[0].rollout.completion.temperature if extra else None,
    }


def _reward_parts(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the mean reward of each reward function over the ordinary samples, if there are several functions."""
    parts: dict[str, Metric] = {}
    for sample in samples:
        for name, value in () if sample.extra else sample.rollout.parts.items():
            if math.isfinite(value):
                parts[name] = parts.get(name, Metric(0.0, 0)) + Metric(value, 1)
    return {"rewards": {name: metric.mean for name, metric in parts.items()}} if parts else {}


def _truncated(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor([float(sample.rollout.completion.truncated) for sample in samples])
