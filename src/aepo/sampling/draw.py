"""`draw_tokens` draws one token per row from the next-token distribution, cut as `Cuts` says."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.errors import require


@dataclass(frozen=True)
class Cuts:
    """`Cuts` says which part of the next-token distribution is left, at the temperature of the request.

    The cuts come in this order, as in vLLM: min-p, top-k, top-p of what is left. What is left is renormalised.
    """

    top_p: float = 1.0
    """Draw from the smallest set of tokens whose probability reaches this; 1 is the whole vocabulary."""
    top_k: int | None = None
    """Draw from this many most probable tokens (more where probabilities are equal); None is the whole vocabulary."""
    min_p: float = 0.0
    """Draw from tokens of at least this share of the largest probability; 0 is the whole vocabulary."""

    def __post_init__(self) -> None:
        require(0 < self.top_p <= 1, "top_p", self.top_p, "in (0, 1]")
        require(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1, or None for no cut")
        require(0 <= self.min_p < 1, "min_p", self.min_p, "in [0, 1)")


WHOLE = Cuts()
"""No cut."""


def draw_tokens(logits: Tensor, temperatures: Tensor, uniforms: Tensor, cuts: Cuts = WHOLE) -> tuple[Tensor, Tensor]:
    """Draw one token per row by the inverse distribution function.

    The distribution is softmax(logits / temperature) in float32, cut and renormalised.

    Args:
        logits: [B, V].
        temperatures: [B], positive.
        uniforms: [B], in [0, 1).
        cuts: What is cut off the distribution.

    Returns:
        The tokens and their log-probabilities (nats), both [B]. The log-probability is NaN for a row with a NaN or +inf
        among its logits.
    """
    probs, order = _without_tail(torch.softmax(logits.float() / temperatures[:, None], dim=-1), cuts), None
    if cuts.top_p < 1:
        probs, order = probs.sort(dim=-1, descending=True, stable=True)
        reached = probs.cumsum(-1) - probs
        whole = cuts.top_k is None and cuts.min_p == 0
        probs = probs.masked_fill(reached >= cuts.top_p * (1.0 if whole else probs.sum(-1, keepdim=True)), 0.0)
    reached = probs.cumsum(-1)
    total = reached[:, -1:]
    # The float sum may be below 1, so the uniform is scaled by it: u * total < total also after rounding, and
    # the first place where `reached` exceeds that has probability > 0. The clamp is for rows of NaN.
    places = torch.searchsorted(reached, uniforms[:, None] * total, right=True).clamp_(max=logits.shape[-1] - 1)
    drawn = places if order is None else order.gather(-1, places)
    return drawn.squeeze(-1), (probs.gather(-1, places) / total).log().squeeze(-1)


def _without_tail(probs: Tensor, cuts: Cuts) -> Tensor:
    """Return the probabilities [B, V] with zeros where min-p and top-k cut."""
    if cuts.min_p > 0:
        probs = probs.masked_fill(probs < cuts.min_p * probs.amax(-1, keepdim=True), 0.0)
    if cuts.top_k is not None and cuts.top_k < probs.shape[-1]:
        least = probs.topk(cuts.top_k, dim=-1).values[:, -1:]
        probs = probs.masked_fill(probs < least, 0.0)
    return probs
