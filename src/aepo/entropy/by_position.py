"""Means by position in the completion, in buckets that need no knowledge of how long a completion may be."""

from __future__ import annotations

import torch
from torch import Tensor

# First token of each bucket, 0-based: sixteen single tokens, then four buckets to each doubling. The last bucket takes
# everything from about 55 000 on.
STARTS: tuple[int, ...] = (*range(16), *(round(16 * 2 ** (quarter / 4)) for quarter in range(48)))


def means_by_position(values: Tensor, mask: Tensor) -> list[float]:
    """Means of `values` [B, T] over the masked entries (bool or 0/1, [B, T]), one for each bucket of `STARTS`.

    Ends with the last bucket that has an entry, so at most 64 numbers; NaN for a bucket without one before that.

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
