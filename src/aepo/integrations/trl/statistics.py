"""`statistics` makes the forward pass for statistics that TRL's own scoring does not give.

These are log pi^T, the entropy over a part of the vocabulary, and an entropy with gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from aepo.control.base import Needs
from aepo.engines.collate import scatter
from aepo.engines.linear_head import logit_transform
from aepo.entropy.statistics import token_statistics
from aepo.entropy.transform import LogitTransform
from aepo.errors import InvalidValue
from aepo.types import BatchStatistics

# The factor and the soft cap of each model that was checked.
_transforms: WeakKeyDictionary[nn.Module, LogitTransform] = WeakKeyDictionary()


def beyond_trl(needs: Needs) -> bool:
    """Return whether the control needs more than TRL's log-probabilities and entropies."""
    return bool(needs.temperatures) or needs.kept is not None or needs.entropy_gradient


def statistics(
    model: Any,
    inner: Any,
    ids: Tensor,
    attention_mask: Tensor,
    mask: Tensor,
    needs: Needs,
    images: Mapping[str, Tensor] | None = None,
) -> BatchStatistics:
    """Return the statistics of the completion tokens from one forward pass; they have gradients where enabled.

    Args:
        model: The model that is called; it may be wrapped.
        inner: The causal language model inside `model`.
        ids: The tokens of prompts and completions, [B, P + T].
        attention_mask: [B, P + T].
        mask: Nonzero at the tokens to score, [B, T].
        needs: The statistics that the control needs.
        images: The images of the rows, as arguments of the model; None for rows of text.
    """
    caught: list[Tensor] = []
    handle = inner.base_model.register_forward_hook(lambda module, given, output: caught.append(output[0]))
    try:
        model(input_ids=ids, attention_mask=attention_mask, logits_to_keep=1, use_cache=False, **(images or {}))
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
        transform=_transforms.get(inner) or check_model(inner),
        temperatures=needs.temperatures,
        kept=needs.kept,
    )
    return scatter(stats, places, needs.temperatures)


def check_model(inner: Any) -> LogitTransform:
    """Return the factor and the soft cap of the model's logits, which `statistics` uses from then on.

    Raises:
        InvalidValue: The output layer is not a plain `nn.Linear` on the last hidden states.
    """
    head, kind = inner.get_output_embeddings(), type(inner).__name__
    if type(head) is not nn.Linear:
        raise InvalidValue("model", kind, "one whose output layer is plain and without an adapter, for this method")
    transform = _transforms[inner] = logit_transform(inner, head)
    return transform
