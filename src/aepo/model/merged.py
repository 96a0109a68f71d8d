"""`merged_weights` gives the weights of a model as a file in Hugging Face format holds them, without a file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion


def merged_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield each weight with the name and the shape that it has in the model's files, an adapter added to it.

    The names and the bits are those that `Policy.save_merged` writes. The model is not changed. At one time at most one
    decoder layer with an adapter exists a second time.

    Args:
        model: A model of transformers, with the adapter's layers inside if there is an adapter.
    """
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "base_layer")}
    state = model.state_dict()
    left_out = _left_out(model, state)
    entries: dict[str, Tensor | nn.Module] = {}
    for key, tensor in state.items():
        owner = _owner(key, adapted)
        entries[owner or key] = adapted[owner] if owner else tensor
    for _, names in groupby(entries, _block):
        part: dict[str, Tensor] = {}
        for name in names:
            entry = entries[name]
            part |= {name: entry} if isinstance(entry, Tensor) else _merged(name, entry)
        part = {name: tensor for name, tensor in part.items() if name not in left_out}
        yield from revert_weight_conversion(model, part).items()


def _owner(key: str, adapted: dict[str, nn.Module]) -> str | None:
    """Return the outermost adapted layer to which the key of the state belongs; None if it belongs to none."""
    parts = key.split(".")
    return next((name for i in range(1, len(parts)) if (name := ".".join(parts[:i])) in adapted), None)


def _merged(name: str, layer: nn.Module) -> dict[str, Tensor]:
    """Return the weights of a layer with its adapter added, as peft adds it, from a copy."""
    twin: Any = copy.deepcopy(layer)
    with torch.no_grad():
        twin.merge()
    return {f"{name}.{key}": tensor for key, tensor in twin.get_base_layer().state_dict().items()}


def _left_out(model: Any, state: dict[str, Tensor]) -> set[str]:
    """Return the names that no file holds: the second name of a tied weight, and what the model does not save."""
    plain = {key.replace(".base_layer.", "."): tensor for key, tensor in state.items()}
    ties = [(tied, source) for tied, source in model.all_tied_weights_keys.items() if {tied, source} <= plain.keys()]
    tied = {tied for tied, source in ties if plain[tied].data_ptr() == plain[source].data_ptr()}
    return tied | set(model._keys_to_ignore_on_save or ())


def _block(name: str) -> str:
    """Return the name up to its first number, such as that of the decoder layer.

    transformers splits and joins weights within such a block, for example those of experts.
    """
    parts = name.split(".")
    end = next((i for i, part in enumerate(parts) if part.isdigit()), len(parts) - 1)
    return ".".join(parts[: end + 1])
