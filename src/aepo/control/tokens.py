"""This module holds the token statistics that controls share. Masks and values are [B, T]; nothing has a gradient.

A token is "masked" here if its mask is 1: it counts.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from aepo.types import Batch


def quantile(values: Tensor, mask: Tensor, q: float, interpolation: Literal["nearest", "linear"] = "linear") -> Tensor:
    """Return the q-quantile of the masked values, a scalar; NaN when nothing is masked.

    It sorts all masked values, because `torch.quantile` refuses more than 16 million values.
    """
    ordered = values[mask.bool()].sort().values
    if not len(ordered):
        return values.new_tensor(math.nan)
    place = q * (len(ordered) - 1)
    if interpolation == "nearest":
        return ordered[round(place)]
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (high - low) * (place - math.floor(place))


def row_quantile(values: Tensor, mask: Tensor, q: float) -> Tensor:
    """Return the (linearly interpolated) q-quantile of each row's masked values, [B]; NaN for a row without any."""
    return torch.stack([quantile(row, kept, q) for row, kept in zip(values, mask, strict=True)])


def row_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of each row's masked values, [B]; 0 for a row without any."""
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of all masked values, a scalar; 0 when nothing is masked."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def top_share(values: Tensor, mask: Tensor, share: float, least: int = 0) -> Tensor:
    """Return which of the N masked tokens have the floor(share * N) largest values, bool [B, T].

    Args:
        values: The values, [B, T].
        mask: The mask, [B, T].
        share: The share of the masked tokens, from 0 to 1.
        least: The smallest number of tokens to return, if there are so many.
    """
    return largest(values, mask, max(share_of(mask, share), least))


def share_of(mask: Tensor, share: float) -> int:
    """Return floor(share * N) of the N masked tokens.

    A product that is a rounding error below a whole number counts as that number.
    """
    return int(share * int(mask.sum()) + 1e-9)


def largest(values: Tensor, mask: Tensor, count: int) -> Tensor:
    """Return which masked tokens have the `count` largest values, bool [B, T]; all of them if there are fewer."""
    flat, kept = values.flatten(), mask.flatten().bool()
    chosen = torch.zeros_like(kept)
    chosen[flat.masked_fill(~kept, -math.inf).topk(min(count, int(kept.sum()))).indices] = True
    return chosen.view(values.shape)


def covariance(logprobs: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """Return (log pi - mean log pi)(A - mean A) of each masked token, [B, T]; 0 elsewhere (2505.22617, Eq. 10).

    The means are taken over all masked tokens.
    """
    centred = [(x - masked_mean(x, mask)) * mask for x in (logprobs, advantages)]
    return centred[0] * centred[1]


def group_accuracy(batch: Batch) -> Tensor:
    """Return the share of right answers in each row's group, [B].

    Extra completions have groups of their own, so the share of an ordinary group is that of ordinary completions.
    """
    right = batch.right.float()
    accuracy = torch.zeros_like(right)
    for group in batch.groups.unique():
        members = batch.groups == group
        accuracy[members] = right[members].mean()
    return accuracy


def entropy_to_go(entropy: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Return sum_{l > t} gamma^(l - t) H_l at each token t, [B, T]: the discounted entropy of the tokens after it."""
    values = entropy * mask
    to_go = torch.zeros_like(values)
    for t in range(values.shape[1] - 2, -1, -1):
        to_go[:, t] = gamma * (values[:, t + 1] + to_go[:, t + 1])
    return to_go * mask
