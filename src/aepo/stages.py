"""Stages of a step that every engine shares: rollouts to samples, and the loss of some rows."""

from __future__ import annotations

from collections.abc import Sequence, Set

import torch
from torch import Tensor

from aepo.algorithm import Algorithm
from aepo.checks import InvalidValue
from aepo.control.base import Scored, State, Step
from aepo.losses import LossOutput, policy_loss
from aepo.types import Rollout, Sample, TokenStats


def compare(
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
    new: TokenStats,
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
