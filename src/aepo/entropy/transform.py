"""`LogitTransform` is what a model does to the output of its LM head before the softmax: a scale, then a soft cap.

    z = scale y                             y the output of the LM head, bias included
    z = softcap tanh(scale y / softcap)     with a soft cap
    dz/dy = scale (1 - tanh^2(scale y / softcap))

Granite, Cohere and Falcon-H1 scale, Gemma 2 and Recurrent Gemma cap, and some models do both in this order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aepo.errors import require


@dataclass(frozen=True)
class LogitTransform:
    """`LogitTransform` holds the scale and the soft cap of a model's logits. The default changes nothing."""

    scale: float = 1.0
    """The factor of the LM head's output, positive."""
    softcap: float | None = None
    """The bound of the absolute value of a logit, positive; None for no bound."""

    def __post_init__(self) -> None:
        require(0 < self.scale < math.inf, "scale", self.scale, "a positive, finite number")
        good = self.softcap is None or 0 < self.softcap < math.inf
        require(good, "softcap", self.softcap, "a positive, finite number, or None for no soft cap")

    @property
    def plain(self) -> bool:
        """Return whether the logits are the output of the LM head as it is."""
        return self.scale == 1.0 and self.softcap is None

    def __call__(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the logits z of the LM head's output y, in a tensor of the same shape.

        Args:
            y: The output of the LM head.
            out: The tensor that gets the logits, which may be y; None for a new one.
        """
        if self.softcap is None:
            return torch.mul(y, self.scale, out=out)
        return self.bounded(y, out).mul(self.softcap) if out is None else self.bounded(y, out).mul_(self.softcap)

    def inverse(self, z: Tensor) -> Tensor:
        """Return the LM head's output y of the logits z; -inf for a logit below the reach of the soft cap."""
        if self.softcap is None:
            return z / self.scale
        return (z / self.softcap).clamp(-1, 1).atanh() * (self.softcap / self.scale)

    def bounded(self, y: Tensor, out: Tensor | None = None) -> Tensor:
        """Return t = tanh(scale y / softcap), from which z = softcap t and dz/dy = scale (1 - t^2).

        Args:
            y: The output of the LM head.
            out: The tensor that gets the result, which may be y; None for a new one.
        """
        assert self.softcap is not None
        t = torch.mul(y, self.scale / self.softcap, out=out)
        return t.tanh() if out is None else t.tanh_()
