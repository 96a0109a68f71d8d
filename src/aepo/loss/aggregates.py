"""Aggregates: how the tokens of a minibatch are averaged, as one weight for each token.

The weights are those of the whole minibatch. Microbatches use slices of them, so the size of a microbatch never changes
the gradient. In the formulas m is the mask [B, T], 1 where a token counts.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

AggregateFunction = Callable[[Tensor], Tensor]


def token_mean(mask: Tensor) -> Tensor:
    """Return m / sum(m): every token of the minibatch weighs the same (DAPO, verl's default, AEPO's code)."""
    return mask / mask.sum().clamp(min=1)


def sequence_mean_token_mean(mask: Tensor) -> Tensor:
    """Return m / len / B: every completion weighs the same, and its tokens share that (GRPO's paper form)."""
    lengths = mask.sum(-1, keepdim=True)
    rows = (lengths > 0).sum().clamp(min=1)
    return mask / lengths.clamp(min=1) / rows


def sequence_mean_token_sum(mask: Tensor) -> Tensor:
    """Return m / B: the loss is the mean over completions of the sum over their tokens."""
    rows = (mask.sum(-1) > 0).sum().clamp(min=1)
    return mask / rows


def fixed_length(mask: Tensor) -> Tensor:
    """Return m / (B * T) with T the longest completion of the step, so that length is neither rewarded nor punished.

    Dr. GRPO (2503.20783) divides by a constant instead, so its scale does not follow the longest completion.
    """
    rows = (mask.sum(-1) > 0).sum().clamp(min=1)
    return mask / rows / max(mask.shape[1], 1)


AGGREGATES: dict[str, AggregateFunction] = {
    "token-mean": token_mean,
    "sequence-mean-token-mean": sequence_mean_token_mean,
    "sequence-mean-token-sum": sequence_mean_token_sum,
    "fixed-length": fixed_length,
}
"""Every aggregate by name: a function from the mask [B, T] to the weight of each token [B, T]."""
