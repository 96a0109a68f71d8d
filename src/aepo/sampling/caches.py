"""KV caches behind transformers' interface: one that grows in place, and one of a fixed size."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

# The cache grows by this many tokens at least: it is copied seldom, and takes no memory for an answer that ends early.
ROOM = 64


def cache_argument(model: torch.nn.Module) -> str:
    """Return the name of the KV cache among the arguments of a model's `forward`: `cache` since transformers 5.24."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


class RoomyLayer(DynamicLayer):
    """`RoomyLayer` holds keys and values with spare columns, so that a new token is written in place.

    `DynamicLayer` concatenates: it copies the whole cache for every token into newly allocated memory.
    """

    def __init__(self, layer: DynamicLayer, rows: Tensor, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        assert layer.keys is not None and layer.values is not None
        self.dtype, self.device, self.is_initialized = layer.keys.dtype, layer.keys.device, True
        self._buffers = [_with_room(x, room).index_select(0, rows) for x in (layer.keys, layer.values)]
        self._show(layer.keys.shape[-2])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the keys and values of new tokens, and return all."""
        start, end = self._columns, self._columns + key_states.shape[-2]
        if end > self._buffers[0].shape[-2]:
            self._buffers = [_with_room(buffer, max(ROOM, end // 2)) for buffer in self._buffers]
        for buffer, states in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:end] = states
        return self._show(end)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep these rows, at most as many as there are; only rows that change place are copied."""
        moved = (beam_idx != torch.arange(len(beam_idx), device=beam_idx.device)).nonzero().squeeze(-1)
        for buffer in self._buffers:
            shown = buffer[:, :, : self._columns]
            shown[moved] = shown[beam_idx[moved]]
        self._buffers = [buffer[: len(beam_idx)] for buffer in self._buffers]
        self._show(self._columns)

    def _show(self, columns: int) -> tuple[Tensor, Tensor]:
        self._columns = columns
        self.keys, self.values = (buffer[:, :, :columns] for buffer in self._buffers)
        return self.keys, self.values


def _with_room(states: Tensor, room: int) -> Tensor:
    rows, heads, columns, size = states.shape
    roomy = states.new_empty(rows, heads, columns + room, size)
    roomy[:, :, :columns] = states
    return roomy


def repeat(cache: Cache, rows: Tensor, most: int) -> None:
    """Repeat a cache from one row for each prompt to one for each completion.

    Args:
        cache: The cache of the prompts.
        rows: int64 [A], the prompt of each completion.
        most: The largest number of new tokens.
    """
    room = min(most, ROOM)
    for number, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.keys is not None:
            cache.layers[number] = RoomyLayer(layer, rows, room)
        else:  # other layers, such as sliding windows, use transformers' own method
            layer.reorder_cache(rows)  # type: ignore[arg-type]


class FixedLayer(DynamicLayer):
    """`FixedLayer` holds keys and values in buffers of a fixed size; a new token is written at a column on the device.

    Attention gets the whole buffers, and a mask that leaves out the columns that are not written yet.

    Args:
        keys: The keys of all rows, [A, heads, columns, size].
        values: The values, of the same form.
        column: int64 [1], the column of the next token; all layers of a cache share it.
    """

    def __init__(self, keys: Tensor, values: Tensor, column: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values, self._column = keys, values, column

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Write the keys and values of one token for each row, and return all."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self._column, key_states)
        self.values.index_copy_(2, self._column, value_states)
        return self.keys, self.values


def can_be_fixed(cache: Cache) -> bool:
    """Return whether every layer of a filled cache keeps the keys and values of all tokens."""
    return all(type(layer) is DynamicLayer and layer.keys is not None for layer in cache.layers)


def fixed(cache: Cache, rows: Tensor, columns: int, column: Tensor) -> Cache:
    """Return a cache of these rows with buffers of a fixed size.

    Args:
        cache: A cache whose layers hold keys and values, [P, heads, C, size].
        rows: int64 [A], the row of the cache for each new row.
        columns: The number of columns of the buffers.
        column: int64 [1], the column of the next token.
    """
    new = copy.copy(cache)
    new.layers = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None
        keys, values = (_widened(states.index_select(0, rows), columns) for states in (layer.keys, layer.values))
        new.layers.append(FixedLayer(keys, values, column))
    return new


def keeps_all(cache: Cache) -> bool:
    """Return whether every layer of a new cache will keep the keys and values of all tokens."""
    return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)


def joined(caches: Sequence[Cache]) -> Cache:
    """Return one cache with the rows of all, in this order; shorter ones get columns of zeros on the left.

    Args:
        caches: One cache of any kind, or several whose layers hold keys and values, [P, heads, C, size], with any P
            and C.
    """
    if len(caches) == 1:
        return caches[0]
    new = copy.copy(caches[0])
    new.layers = []
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        layer = copy.copy(layers[0])
        layer.keys, layer.values = (_stacked([getattr(one, name) for one in layers]) for name in ("keys", "values"))
        new.layers.append(layer)
    return new


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Return all rows of the parts, with zeros before the columns of those that have fewer."""
    width = max(part.shape[2] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, 0, width - part.shape[2], 0)) for part in parts])


def _widened(states: Tensor, columns: int) -> Tensor:
    """Return the states with further columns of zeros: attention multiplies also what its mask leaves out."""
    rows, heads, width, size = states.shape
    wide = states.new_zeros(rows, heads, columns, size)
    wide[:, :, : min(width, columns)] = states[:, :, :columns]
    return wide
