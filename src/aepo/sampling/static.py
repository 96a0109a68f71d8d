"""Decoding with tensors that keep their places, so that a CUDA graph can replay a step without the host.

`HFSampler` decodes rows of a fixed number with a cache of a fixed size. A step draws a token for each row and runs the
model on it; all that it reads and changes stays in the same tensors. The host looks only after `LOOK` steps: which rows
have ended, and whether logits were finite. Rows that have ended go on until then, and what they draw is thrown away.

When half of the rows have ended, or the cache is full, the rows that are left get a new cache: a few times in a call,
because the rows halve and the cache doubles.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from aepo.model.forward import attention_mask, attention_of

# Steps between two looks of the host at the rows.
LOOK = 16
# Columns of the first cache for new tokens.
COLUMNS = 128


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


def _widened(states: Tensor, columns: int) -> Tensor:
    """Return the states with further columns of zeros: attention multiplies also what its mask leaves out."""
    rows, heads, width, size = states.shape
    wide = states.new_zeros(rows, heads, columns, size)
    wide[:, :, : min(width, columns)] = states[:, :, :columns]
    return wide


def causal_mask(
    prompts: Tensor | None, rows: int, columns: int, column: Tensor, model: Any
) -> tuple[Tensor, bool | float]:
    """Return the mask of a fixed cache, [A, 1, 1, columns], and the value that shows a column.

    Args:
        prompts: bool [A, P], false on padding; None if there is none.
        rows: A, the number of rows.
        columns: The columns of the cache.
        column: int64 [1], the first column that is not written yet.
        model: The model; `eager` attention adds its mask, others take bools.
    """
    seen = (torch.arange(columns, device=column.device) < column).repeat(rows, 1)
    if prompts is not None:
        seen[:, : prompts.shape[1]] &= prompts
    seen = seen[:, None, None]
    return attention_mask(model, seen), 0.0 if attention_of(model) == "eager" else True


class Replay:
    """`Replay` calls a function again and again: the first time as it is, later as a captured CUDA graph.

    Args:
        step: A function without arguments and result that reads and changes tensors in their places.
        capture: Whether a graph is captured. Without one, each call runs the function.
    """

    def __init__(self, step: Callable[[], None], capture: bool) -> None:
        self._step = step
        self._graph: torch.cuda.CUDAGraph | None = None
        self._capture = capture
        self.failed = ""
        """Why no graph could be captured; empty if none was tried or it could."""

    def __call__(self) -> None:
        """Do the step once."""
        if self._graph is not None:
            self._graph.replay()
            return
        self._step()
        if self._capture:
            self._graph = self._captured()

    def _captured(self) -> torch.cuda.CUDAGraph | None:
        """Return the graph of the step. A capture runs nothing, so the step that came before it warmed up."""
        self._capture = False
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                self._step()
        except RuntimeError as error:  # the model's code waits for the device, as mixtures of experts do
            self.failed = str(error).splitlines()[0]
            with contextlib.suppress(RuntimeError):
                torch.cuda.synchronize()
            return None
        return graph
