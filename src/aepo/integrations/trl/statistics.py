"""The pass that TRL's own scoring has no outlet for: log pi^T, the entropy of a part of the vocabulary, gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from aepo.control.base import Needs
from aepo.entropy.statistics import token_statistics
from aepo.errors import InvalidValue
from aepo.types import TokenStats


def beyond_trl(needs: Needs) -> bool:
    """Whether TRL's log-probabilities and entropies do not suffice."""
    return bool(needs.temperatures) or needs.kept is not None or needs.entropy_gradient


def statistics(model: Any, inner: Any, ids: Tensor, attention_mask: Tensor, mask: Tensor, needs: Needs) -> TokenStats:
    """One forward pass through `model`, which may be wrapped; gradient where it is enabled.

    inner: the causal language model inside it. ids, attention_mask: [B, P + T]. mask: [B, T], the tokens to score.
    """
    caught: list[Tensor] = []
    handle = inner.base_model.register_forward_hook(lambda module, given, output: caught.append(output[0]))
    try:
        model(input_ids=ids, attention_mask=attention_mask, logits_to_keep=1, use_cache=False)
    finally:
        handle.remove()
    places, width = mask.bool(), mask.shape[1]
    hidden = caught[0][:, -width - 1 : -1][places]
    head = inner.get_output_embeddings()
    stats = token_statistics(
        hidden,
        head.weight.to(hidden.dtype),
        ids[:, -width:][places],
        bias=None if head.bias is None else head.bias.to(hidden.dtype),
        temperatures=needs.temperatures,
        kept=needs.kept,
    )
    return TokenStats(
        logprobs=_scatter(stats.logprobs, places),
        entropy=_scatter(stats.entropy, places),
        tempered={t: _scatter(values, places) for t, values in zip(needs.temperatures, stats.tempered, strict=True)},
        kept_entropy=_scatter(stats.kept_entropy, places) if needs.kept else None,
    )


def check_model(inner: Any) -> None:
    """Refuse a model whose logits are not a plain linear map, by weights of its own, of its last hidden states."""
    head, kind = inner.get_output_embeddings(), type(inner).__name__
    if type(head) is not nn.Linear:
        raise InvalidValue("model", kind, "one whose output layer is plain and without an adapter, for this method")
    # Several tokens: that of padding has an embedding of zeros in some models.
    ids = torch.arange(min(8, len(head.weight)), device=head.weight.device)[None]
    with torch.no_grad():
        logits = inner(input_ids=ids).logits.float()
        linear = head(inner.base_model(input_ids=ids)[0]).float()
    if not torch.allclose(logits, linear, rtol=1e-2, atol=1e-2):
        raise InvalidValue("model", kind, "one whose logits are a linear head (no soft-capping or scaling)")


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
