"""The functions of this module call a model's layers below its output layer, and refuse what padding would change."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aepo.errors import InvalidValue
from aepo.types import Vision

# Largest relative change of a token's hidden state by padding and by later tokens, as the median over tokens. Masked
# attention rounds in another way; a model that reads padding changes by much more.
CHANGE = {torch.float32: 1e-4, torch.bfloat16: 0.1}


def accepted(module: Any, **arguments: Any) -> dict[str, Any]:
    """Return those of the arguments that the module's forward pass takes."""
    known = inspect.signature(module.forward).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return arguments
    return {name: value for name, value in arguments.items() if name in known}


def attention_of(model: Any) -> str | None:
    """Return how the model computes attention, by transformers' name; None if it says nothing."""
    return getattr(model.config.get_text_config(), "_attn_implementation", None)


def attention_mask(model: Any, seen: Tensor) -> Tensor:
    """Return the mask of which tokens see which, in the form that the model takes.

    Args:
        model: A causal language model of transformers.
        seen: bool [R, 1, L, C], whether the token of the row sees the column.

    Returns:
        `seen` itself, or for `eager` attention the numbers that it adds to the scores.
    """
    if attention_of(model) != "eager":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)


def last_hidden(
    model: Any, ids: Tensor, mask: Tensor, positions: Tensor | None = None, vision: Vision | None = None
) -> Tensor:
    """Return the last hidden states, [B, T, D].

    Args:
        model: A causal language model of transformers.
        ids: The tokens, [B, T].
        mask: 0 on padding, else 1, [B, T].
        positions: The positions of the tokens, [B, A, T]; None counts the tokens of each row.
        vision: The images of the rows; None for rows of text.
    """
    body = model.base_model
    places = (mask.cumsum(1) - 1).clamp(min=0) if positions is None else positions.transpose(0, 1)
    more = accepted(body, position_ids=places, use_cache=False, **seen(vision))
    hidden: Tensor = body(input_ids=ids, attention_mask=mask, **more)[0]
    return hidden


def seen(vision: Vision | None) -> dict[str, Tensor]:
    """Return the images as arguments of a model of Qwen's interface; none where there is no image."""
    images = None if vision is None else vision.cat()
    return {} if images is None else {"pixel_values": images[0], "image_grid_thw": images[1]}


def check_padding(model: Any, ids: Tensor, pad_token_id: int, dtype: torch.dtype) -> None:
    """Refuse a model whose hidden states depend on padding or on later tokens.

    Args:
        model: A causal language model of transformers.
        ids: Real tokens, [1, T], at least 5.
        pad_token_id: The padding token.
        dtype: The dtype of the forward pass.

    Raises:
        InvalidValue: The model cannot read rows of different lengths.
    """
    kind, length = type(model).__name__, ids.shape[1] - 3
    row = torch.full_like(ids, pad_token_id)
    row[:, 2:-1] = ids[:, :length]
    mask = torch.ones_like(ids)
    masked = mask.clone()
    masked[:, :2] = masked[:, -1:] = 0
    alone = _tried(kind, lambda: last_hidden(model, ids, mask))[0]
    padded, whole = _tried(kind, lambda: last_hidden(model, torch.cat([row, ids]), torch.cat([masked, mask])))
    change = max(_change(padded[2:-1], alone[:length]), _change(whole, alone))
    if not change <= CHANGE[dtype]:
        got = f"{kind}, whose hidden states change by {change:.1%} with padding around a row and later tokens behind it"
        raise InvalidValue("model", got, "one that reads from left to right and leaves masked padding out")


def _tried(kind: str, call: Callable[[], Tensor]) -> Tensor:
    try:
        with torch.no_grad():
            return call()
    except Exception as error:  # any model's own code
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidValue("model", kind, f"one that reads padded rows of token ids ({reason})") from None


def _change(states: Tensor, right: Tensor) -> float:
    states, right = states.float(), right.float()
    return float(((states - right).norm(dim=-1) / right.norm(dim=-1)).median())
