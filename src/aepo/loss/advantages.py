"""Advantages: how the reward of a completion compares with its group's rewards.

Every function takes rewards [N] and group numbers [N] and returns advantages [N] in float32. Group numbers are any
integers, and the rows of a group need not be adjacent. Statistics are taken in float64. A group of one row has nothing
to be compared with and gets 0, and so does every row of a group whose rewards are equal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.errors import require

STD_EPSILON = 1e-6


def group_mean_std(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return GRPO's (R - mean) / (std + 1e-6), unbiased std over the group (2402.03300; eps as in verl and EasyR1)."""
    centred, index, size = _centred(rewards, groups)
    squares = torch.zeros_like(size).index_add_(0, index, centred**2)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    return (centred / (std[index] + STD_EPSILON)).float()


def group_mean(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return Dr. GRPO's R - mean (2503.20783). It does not divide, so easy and hard prompts are not weighted up."""
    centred, _, _ = _centred(rewards, groups)
    return centred.float()


def leave_one_out(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return RLOO's R - mean of the *other* rows of the group (2402.14740), an unbiased baseline; it needs 2 rows."""
    centred, index, size = _centred(rewards, groups)
    others = (size - 1).clamp(min=1)
    return (centred * (size / others)[index]).float()


def pass_at_k(right: Tensor, groups: Tensor, k: int) -> Tensor:
    """Return the advantages of pass@k training (2508.10751), for the chance that one of k completions is right.

    A group has N rows, of which W are wrong:

        Rbar  = 1 - C(W, k) / C(N, k)        s = sqrt(Rbar (1 - Rbar))
        right:  (1 - Rbar) / s
        wrong:  (1 - Rbar - C(W - 1, k - 1) / C(N - 1, k - 1)) / s

    A group smaller than k takes k = N. Where every choice of k is right, or every completion is wrong, s = 0 and the
    advantages are 0.
    """
    wrong = ~right
    result = torch.zeros(right.shape, dtype=torch.float64)
    for group in groups.unique():
        members = groups == group
        n, w = int(members.sum()), int((members & wrong).sum())
        size = min(k, n)
        mean = 1 - math.comb(w, size) / math.comb(n, size)
        spread = math.sqrt(mean * (1 - mean))
        if spread > 0:
            result[members & ~wrong] = (1 - mean) / spread
            result[members & wrong] = (1 - mean - math.comb(w - 1, size - 1) / math.comb(n - 1, size - 1)) / spread
    return result.float()


def quantile_baseline(rewards: Tensor, groups: Tensor, quantile: float) -> Tensor:
    """Return QAE's (R - the group's K-quantile) / (std + 1e-6) (2509.22611), with K = 0.4, or 0.6 against collapse.

    With rewards 0 and 1 the baseline is 0 while the accuracy is at most 1 - K, and then only right answers count. Above
    that it is 1, and only wrong answers count. An interpolated quantile would blur that gate, so the quantile is the
    lower neighbour: the ceil(K N)-th smallest reward.
    """
    centred, index, size = _centred(rewards, groups)
    squares = torch.zeros_like(size).index_add_(0, index, centred**2)
    std = (squares / (size - 1).clamp(min=1)).sqrt()
    result = torch.zeros_like(centred)
    for number in range(len(size)):
        members = index == number
        ordered = rewards[members].double().sort().values
        # The tolerance keeps 0.4 * 5 = 2.0000000000000004 at the second one.
        baseline = ordered[max(math.ceil(quantile * len(ordered) - 1e-9), 1) - 1]
        result[members] = (rewards[members].double() - baseline) / (std[number] + STD_EPSILON)
    return torch.where(std[index] > 0, result, 0.0).float()


def maximum_likelihood(rewards: Tensor, groups: Tensor) -> Tensor:
    """Return MaxRL's (R - mean) / (mean + 1e-6) (2602.02710), which weighs hard prompts by 1 / accuracy.

    With rewards 0 and 1 and the group's accuracy p, a right answer has (1 - p) / p and a wrong one -1. In the mean over
    groups of G this is the gradient of log p = -sum_k (1 - p)^k / k, cut after its term G - 1: that of the accuracy for
    G = 2, and that of the likelihood for a large G.

    Raises:
        InvalidValue: A reward is negative: a negative mean would turn all signs around.
    """
    require(bool((rewards >= 0).all()), "reward", rewards.min().item(), "0 or more with the advantage maxrl")
    centred, index, size = _centred(rewards, groups)
    mean = torch.zeros_like(size).index_add_(0, index, rewards.double()) / size
    return (centred / (mean[index] + STD_EPSILON)).float()


class Advantage(ABC):
    """`Advantage` is a way to compare the reward of a completion with its group's, as a choice with settings."""

    name: ClassVar[str]
    # Groups smaller than this make no sense with it.
    least_group: int = 2
    negative_rewards: ClassVar[bool] = True
    """Whether rewards below 0 have a meaning for it."""

    @abstractmethod
    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return the advantages, [N].

        Args:
            rewards: [N].
            groups: The number of each row's group, [N].
            right: Whether each row counts as right, [N], bool; None takes a reward above 0.5.
        """


@dataclass(frozen=True)
class GroupMeanStd(Advantage):
    """`GroupMeanStd` is GRPO's advantage, see `group_mean_std`."""

    name: ClassVar[str] = "group-mean-std"

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return (R - mean) / (std + 1e-6)."""
        return group_mean_std(rewards, groups)


@dataclass(frozen=True)
class GroupMean(Advantage):
    """`GroupMean` is Dr. GRPO's advantage, see `group_mean`."""

    name: ClassVar[str] = "group-mean"

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return R - mean."""
        return group_mean(rewards, groups)


@dataclass(frozen=True)
class LeaveOneOut(Advantage):
    """`LeaveOneOut` is RLOO's advantage, see `leave_one_out`."""

    name: ClassVar[str] = "leave-one-out"

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return R - mean of the other rows."""
        return leave_one_out(rewards, groups)


@dataclass(frozen=True)
class PassAtK(Advantage):
    """`PassAtK` is the advantage of pass@k training, see `pass_at_k`."""

    name: ClassVar[str] = "pass-at-k"
    k: int = 4
    """Number of completions of which one must be right; at most the group size."""

    def __post_init__(self) -> None:
        require(self.k >= 2, "advantage.k", self.k, "at least 2 (1 is group-mean-std)")

    @property
    def least_group(self) -> int:  # type: ignore[override]
        """Return the smallest useful group size: `k` completions of a prompt."""
        return self.k

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return the advantages for the chance that one of `k` is right."""
        return pass_at_k(rewards > 0.5 if right is None else right, groups, self.k)


@dataclass(frozen=True)
class QuantileBaseline(Advantage):
    """`QuantileBaseline` is QAE's advantage, see `quantile_baseline`."""

    name: ClassVar[str] = "quantile"
    quantile: float = 0.4
    """K: which quantile of the group's rewards is the baseline."""

    def __post_init__(self) -> None:
        require(0 < self.quantile < 1, "advantage.quantile", self.quantile, "a number in (0, 1)")

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return (R - quantile) / (std + 1e-6)."""
        return quantile_baseline(rewards, groups, self.quantile)


@dataclass(frozen=True)
class MaximumLikelihood(Advantage):
    """`MaximumLikelihood` is MaxRL's advantage, see `maximum_likelihood`."""

    name: ClassVar[str] = "maxrl"
    negative_rewards: ClassVar[bool] = False

    def __call__(self, rewards: Tensor, groups: Tensor, right: Tensor | None = None) -> Tensor:
        """Return (R - mean) / (mean + 1e-6)."""
        return maximum_likelihood(rewards, groups)


ADVANTAGES: dict[str, type[Advantage]] = {
    cls.name: cls for cls in (GroupMeanStd, GroupMean, LeaveOneOut, PassAtK, QuantileBaseline, MaximumLikelihood)
}


def _centred(rewards: Tensor, groups: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return rewards minus their group's mean [N], each row's group index [N], and the groups' sizes [groups]."""
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
