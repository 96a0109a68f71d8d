"""Decoding with tensors that keep their places, so that a CUDA graph can replay a step without the host.

`HFSampler` decodes rows of a fixed number with a cache of a fixed size. A step draws a token for each row and runs the
model on it; all that it reads and changes stays in the same tensors. The host looks only after `LOOK` steps: which rows
have ended, and whether logits were finite. Rows that have ended go on until then, and what they draw is thrown away.

When half of the rows have ended, or the cache is full, the rows that are left get a new cache: a few times in a call,
because the rows halve and the cache doubles.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from aepo.model.forward import attention_mask, attention_of

# Steps between two looks of the host at the rows.
LOOK = 16
# Columns of the first cache for new tokens.
COLUMNS = 128


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
