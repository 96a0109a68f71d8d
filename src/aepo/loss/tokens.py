"""`Tokens` is what a surrogate sees: the log-probabilities of tokens and the ratio of two policies."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Nats. The log ratio is cut to +-20, as in verl: beyond 88 its exp overflows in float32, and inf * 0 is NaN. A token
beyond the limit has no ratio's gradient.
"""


def limited(log_ratio: Tensor) -> Tensor:
    """Return a log ratio cut to +-`LOG_RATIO_LIMIT`, nats; NaN stays NaN."""
    return log_ratio.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)


@dataclass(frozen=True)
class Tokens:
    """`Tokens` is what a surrogate sees of the tokens of some rows, which are whole rows."""

    logprobs: Tensor
    """log pi under the current policy, with gradient, nats, [B, T]; 0 outside the mask."""
    old_logprobs: Tensor
    """log pi under the policy that sampled, at T = 1, without gradient, nats, [B, T]; 0 outside the mask."""
    mask: Tensor
    """The tokens that count, bool [B, T]."""

    @classmethod
    def of(cls, logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tokens:
        """Return the tokens with zeros outside the mask, where no NaN may reach the gradient."""
        return cls(torch.where(mask, logprobs, 0.0), torch.where(mask, old_logprobs.detach(), 0.0), mask)

    @cached_property
    def log_ratio(self) -> Tensor:
        """Return log pi - log pi_old, cut to +-`LOG_RATIO_LIMIT`, nats, [B, T]."""
        return limited(self.logprobs - self.old_logprobs)

    @cached_property
    def ratio(self) -> Tensor:
        """Return pi / pi_old, [B, T]."""
        return self.log_ratio.exp()

    def row_sum(self, values: Tensor) -> Tensor:
        """Return the sum over the tokens of each row, [B, 1]."""
        return (values * self.mask).sum(1, keepdim=True)

    def row_mean(self, values: Tensor) -> Tensor:
        """Return the mean over the tokens of each row, [B, 1]; 0 for a row without tokens."""
        return self.row_sum(values) / self.mask.sum(1, keepdim=True).clamp(min=1)
