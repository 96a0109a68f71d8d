"""The pass that TRL's own scoring has no outlet for: log pi^T, the entropy of a part of the vocabulary, gradients."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from aepo.control.base import Needs
from aepo.engines.collate import scatter
from aepo.engines.linear_head import check_linear_head
from aepo.entropy.statistics import token_statistics
from aepo.errors import InvalidValue
from aepo.types import BatchStatistics


def beyond_trl(needs: Needs) -> bool:
    """Whether TRL's log-probabilities and entropies do not suffice."""
    return bool(needs.temperatures) or needs.kept is not None or needs.entropy_gradient


def statistics(
    model: Any, inner: Any, ids: Tensor, attention_mask: Tensor, mask: Tensor, needs: Needs
) -> BatchStatistics:
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
    return scatter(stats, places, needs.temperatures)


def check_model(inner: Any) -> None:
    """Refuse a model whose logits are not a plain linear map, by weights of its own, of its last hidden states."""
    head, kind = inner.get_output_embeddings(), type(inner).__name__
    if type(head) is not nn.Linear:
        raise InvalidValue("model", kind, "one whose output layer is plain and without an adapter, for this method")
    check_linear_head(inner, head)
