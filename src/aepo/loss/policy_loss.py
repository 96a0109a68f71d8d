"""The policy loss: the sum over tokens of weight * (-correction * surrogate(tokens, advantage) + penalty).

`weight` is the aggregate of the whole minibatch (`aepo.loss.aggregates`). `correction` is 1 unless the sampler's
mismatch is corrected (`aepo.engines.mismatch`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.loss.surrogates import Bounds, Surrogate
from aepo.loss.tokens import Tokens, limited
from aepo.types import Metric


@dataclass(frozen=True)
class LossOutput:
    """`LossOutput` is the loss of some rows, with what is logged about their tokens."""

    loss: Tensor
    """The loss, a scalar with gradient."""
    ratio: Metric
    """pi / pi_old, at most exp(20)."""
    clipped: Metric
    """Share of the tokens to which a clip leaves no gradient, or a limited one (`Surrogate.clipped`)."""
    approximate_kl: Metric
    """k3 estimate of KL(pi_old || pi), nats per token."""


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    weights: Tensor,
    surrogate: Surrogate,
    penalty: Tensor | None = None,
    bounds: Bounds | None = None,
    reinforced: Tensor | None = None,
    correction: Tensor | None = None,
) -> LossOutput:
    """Return the sum of weights * (-correction * surrogate + penalty), and what is logged about it.

    Gradient flows through `logprobs` and `penalty` only. The log ratio is cut to +-20 nats.

    Args:
        logprobs: log pi of each token under the current policy, nats, [B, T].
        old_logprobs: log pi under the policy that sampled, nats, [B, T].
        advantages: [B, T].
        weights: Weight of each token, [B, T], computed by the aggregate over the whole minibatch. A token of weight 0
            counts as padding, also in what is logged.
        surrogate: The objective of a token, to be maximised.
        penalty: A term [B, T] that is added to the loss of each token.
        bounds: Limits that replace the surrogate's own clip bounds (`Algorithm` refuses them where they mean nothing).
        reinforced: The tokens, bool [B, T], whose objective is REINFORCE's in place of the surrogate: the gradient is
            A * grad log pi, without a ratio and without a clip, and the value is A.
        correction: What the objective of each token is multiplied by, [B, T]; None for 1. A token of factor 0 is no
            padding: it stays in what is logged, and its penalty stays.
    """
    mask = weights > 0
    advantages = advantages.detach()
    tokens = Tokens.of(logprobs, old_logprobs, mask)
    objective = surrogate(tokens, advantages, bounds)
    if reinforced is not None:
        objective = torch.where(reinforced, advantages * (tokens.logprobs - tokens.logprobs.detach()).exp(), objective)
    per_token = -objective if correction is None else -correction * objective
    if penalty is not None:
        per_token = per_token + penalty
    loss = (weights * torch.where(mask, per_token, 0.0)).sum()
    with torch.no_grad():
        clipped = surrogate.clipped(tokens, advantages, bounds)
        if reinforced is not None:
            clipped = clipped & ~reinforced
        return LossOutput(
            loss=loss,
            ratio=Metric.of(tokens.ratio, mask),
            clipped=Metric.of(clipped.float(), mask),
            approximate_kl=Metric.of(tokens.ratio - 1 - tokens.log_ratio, mask),
        )


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Return exp(d) - 1 - d with d = log pi_ref(y) - log pi(y), nats.

    For y drawn from pi it is an unbiased estimate of KL(pi || pi_ref), and never negative (Schulman, "Approximating KL
    divergence", 2020; GRPO, 2402.03300, eq. 4). Its gradient by log pi(y) is 1 - exp(d). d is cut to +-20 nats,
    as in verl, and has no gradient beyond.

    Args:
        logprobs: log pi(y), of any shape; the gradient flows through it.
        ref_logprobs: log pi_ref(y), of the same shape; without gradient.
    """
    difference = limited(ref_logprobs.detach() - logprobs)
    return difference.exp() - 1 - difference
