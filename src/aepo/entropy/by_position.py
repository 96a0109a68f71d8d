"""This module takes means by position in the completion.

The positions are grouped into buckets. The buckets do not depend on the longest completion that is allowed.
"""

from __future__ import annotations

import torch
from torch import Tensor

STARTS: tuple[int, ...] = (*range(16), *(round(16 * 2 ** (quarter / 4)) for quarter in range(48)))
"""First token of each bucket, counted from 0.

The first sixteen buckets hold one token each. After them, four buckets cover each doubling of the position. The last
bucket holds all tokens from about 55 000 on.
"""


def means_by_position(values: Tensor, mask: Tensor) -> list[float]:
    """Return the mean of the masked values in each bucket of `STARTS`.

    Args:
        values: The values, [B, T].
        mask: True or 1 where an entry counts, bool or 0/1, [B, T].

    Returns:
        One mean for each bucket, up to the last bucket that has an entry: at most 64 numbers. A bucket before it that
        has no entry is NaN.

    >>> means_by_position(torch.tensor([[1.0, 3.0], [2.0, 9.0]]), torch.tensor([[True, True], [True, False]]))
    [1.5, 3.0]
    """
    kept = mask.bool()
    totals = torch.where(kept, values, torch.zeros_like(values)).double().sum(0).cpu()
    buckets = torch.bucketize(torch.arange(len(totals)), torch.tensor(STARTS[1:]), right=True)
    empty = torch.zeros(len(STARTS), dtype=torch.float64)
    sums = empty.index_add(0, buckets, totals)
    counts = empty.index_add(0, buckets, kept.double().sum(0).cpu())
    filled = int(counts.nonzero().max()) + 1 if counts.any() else 0
    return (sums[:filled] / counts[:filled]).tolist()
