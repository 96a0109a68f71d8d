"""The standard error of a step's entropy: how far the reading may be from the policy's entropy, by the draw alone.

The entropy of a step is a ratio, (sum of H_t) / (number of tokens), over the completions of a few prompts. Completions
of one prompt resemble one another, so prompts are the independent units ("clusters"). With S_i the sum and n_i the
number of tokens of prompt i, G prompts and the mean y = sum S_i / sum n_i, the delta method gives (Cochran, Sampling
Techniques, 3rd ed., 1977, chapters 6 and 9)

    SE^2 = G / (G - 1) * sum_i (S_i - y n_i)^2 / (sum_i n_i)^2
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def standard_error(values: Tensor, mask: Tensor, clusters: Tensor) -> float:
    """Return the standard error of the mean of the masked values, in their unit; NaN with fewer than two clusters.

    Args:
        values: The values, [B, T].
        mask: True or 1 where an entry counts, [B, T].
        clusters: The number of the prompt of each row, [B]. Rows of one number are one unit.

    >>> rows = torch.tensor([[1.0], [1.0], [3.0], [3.0]])
    >>> standard_error(rows, torch.ones(4, 1), torch.tensor([0, 0, 1, 1]))
    1.0
    """
    numbers, total, size = cluster_sums(values, mask, clusters)
    units = len(numbers)
    if units < 2:
        return math.nan
    residuals = total - size * total.sum() / size.sum()
    return math.sqrt(units / (units - 1) * float(residuals.square().sum())) / float(size.sum())


def cluster_sums(values: Tensor, mask: Tensor, clusters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the numbers of the clusters that have a masked value, and the sum and the count of each, in float64.

    Args:
        values: The values, [B, T].
        mask: True or 1 where an entry counts, [B, T].
        clusters: The number of the cluster of each row, [B].
    """
    kept = mask.bool()
    sums = torch.where(kept, values, torch.zeros_like(values)).double().sum(1).cpu()
    counts = kept.double().sum(1).cpu()
    rows = counts > 0
    numbers, place = clusters.cpu()[rows].unique(return_inverse=True)
    empty = torch.zeros(len(numbers), dtype=torch.float64)
    total, size = (empty.index_add(0, place, part[rows]) for part in (sums, counts))
    return numbers, total, size
