"""`check_linear_head` refuses a model whose logits are not a linear head on its last hidden states.

The token statistics compute the logits from the hidden states, so they need such a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aepo.errors import InvalidValue

# Number of tokens that the check reads. One is not enough: in some models the embedding of the first token is zero.
TOKENS = 8


def check_linear_head(model: Any, linear: Callable[[Tensor], Tensor]) -> None:
    """Refuse a model whose logits are not `linear` of its last hidden states, such as one that scales or caps them.

    Args:
        model: A causal language model of transformers.
        linear: The output layer, hidden states [B, T, D] -> logits [B, T, V].

    Raises:
        InvalidValue: The model's logits and `linear` of its hidden states differ on some token.
    """
    head = model.get_output_embeddings()
    ids = torch.arange(min(TOKENS, len(head.weight)), device=head.weight.device)[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
        expected = linear(model.base_model(input_ids=ids)[0]).float()
    if not torch.allclose(logits, expected, rtol=1e-2, atol=1e-2):
        kind = type(model).__name__
        raise InvalidValue("model", kind, "one whose logits are a linear head (no soft-capping or scaling)")
