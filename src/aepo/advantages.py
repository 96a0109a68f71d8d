"""Advantages: how a completion's reward compares with its group's.

Every function takes rewards [N] and group numbers [N] (any integers; rows of a group need not be adjacent)
and returns advantages [N], float32. Statistics are taken in float64. A group of one row has nothing to be
compared with and gets 0, and so does every row of a group whose rewards are equal.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

AdvantageFunction = Callable[[Tensor, Tensor], Tensor]

STD_EPSILON = 1e-6


def group_mean_std(rewards: Tensor, groups: Tensor) -> Tensor:
    """GRPO's (R - mean) / (std + 1e-6), unbiased std over the group (2402.03300; eps as in verl and EasyR1)."""
    centred, index, size = _centred(rewards, groups)
    squares = torch.zeros_like(size).index_add_(0, index, centred**2)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    return (centred / (std[index] + STD_EPSILON)).float()


def group_mean(rewards: Tensor, groups: Tensor) -> Tensor:
    """Dr. GRPO's R - mean (2503.20783): no division, so easy and hard prompts are not weighted up."""
    centred, _, _ = _centred(rewards, groups)
    return centred.float()


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """RLOO's R - mean of the *other* rows of the group (2402.14740): unbiased baseline; needs 2 rows."""
    centred, index, size = _centred(rewards, groups)
    others = (size - 1).clamp(min=1)
    return (centred * (size / others)[index]).float()


ADVANTAGES: dict[str, AdvantageFunction] = {
    "group-mean-std": group_mean_std,
    "group-mean": group_mean,
    "leave-one-out": leave_one_out,
}


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards minus their group's mean [N], each row's group index [N], and the groups' sizes [groups]."""
    if rewards.shape != groups.shape or rewards.dim() != 1:
        raise ValueError(
            f"rewards and groups: got shapes {tuple(rewards.shape)} and {tuple(groups.shape)}; "
            "both must be [N], one entry per completion"
        )
    rewards = rewards.double()
    _, index, counts = groups.unique(return_inverse=True, return_counts=True)
    size = counts.double()
    mean = torch.zeros_like(size).index_add_(0, index, rewards) / size
    centred = rewards - mean[index]
    # A mean of equal floats may miss them by one rounding; divided by a tiny std that would be an advantage.
    centred = torch.where(centred.abs() <= 1e-12 * rewards.abs().clamp(min=1.0), 0.0, centred)
    return centred, index, size
