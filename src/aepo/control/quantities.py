"""Quantities: what a closed loop measures and holds. The entropy is the first; any mean over tokens or rows will do.

A quantity is a ratio: the sum of some values over the number of them, over the ordinary rows of a step. So its standard
error, its control variates and its laws are those of the entropy. A new one is one class: it says which values count.
Own ones are given as `module:Class`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.base import Scored
from aepo.control.tokens import group_accuracy
from aepo.errors import require


class Quantity(ABC):
    """`Quantity` is the mean of `values` where their mask is 1. Positive commands raise it."""

    name: ClassVar[str]
    """The name in the settings."""
    unit: ClassVar[str]
    """The unit, for people."""

    @abstractmethod
    def values(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return the values and the mask, both [B, S]: S is T for a mean over tokens, 1 for a mean over completions.

        The mask is 0 on rows that are not ordinary (see `Scored.ordinary`).
        """


@dataclass(frozen=True)
class Entropy(Quantity):
    """`Entropy` is the exact entropy, over all tokens or over a part of them."""

    name: ClassVar[str] = "entropy"
    unit: ClassVar[str] = "nats per token"
    first_token: int = 0
    """The first position of a completion that counts, from 0."""
    last_token: int | None = None
    """The last position of a completion that counts; none for the end."""
    least_accuracy: float = 0.0
    """Groups with a smaller share of right answers do not count."""
    most_accuracy: float = 1.0
    """Groups with a larger share of right answers do not count."""

    def __post_init__(self) -> None:
        last = self.last_token
        require(self.first_token >= 0, "quantity.first_token", self.first_token, "a position, 0 or more")
        wanted = f"at least first_token ({self.first_token}), or none"
        require(last is None or last >= self.first_token, "quantity.last_token", last, wanted)
        require(0 <= self.least_accuracy <= 1, "quantity.least_accuracy", self.least_accuracy, "a share from 0 to 1")
        wanted = f"a share from least_accuracy ({self.least_accuracy:g}) to 1"
        require(self.least_accuracy <= self.most_accuracy <= 1, "quantity.most_accuracy", self.most_accuracy, wanted)

    @property
    def whole(self) -> bool:
        """Return whether all tokens count."""
        return self == Entropy()

    def values(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return the entropies, and the ordinary rows' tokens that count."""
        mask = scored.ordinary
        if self.whole:
            return scored.entropy, mask
        place = torch.arange(mask.shape[1], device=mask.device)
        end = mask.shape[1] if self.last_token is None else self.last_token
        accuracy = group_accuracy(scored.batch)
        rows = (accuracy >= self.least_accuracy) & (accuracy <= self.most_accuracy)
        return scored.entropy, mask * ((place >= self.first_token) & (place <= end)) * rows[:, None]


@dataclass(frozen=True)
class Length(Quantity):
    """`Length` is the mean number of tokens of a completion, the end-of-sequence token included."""

    name: ClassVar[str] = "length"
    unit: ClassVar[str] = "tokens"

    def values(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return the lengths and the ordinary rows, [B, 1]."""
        return scored.batch.mask.sum(1, keepdim=True), (~scored.batch.extra[:, None]).to(scored.batch.mask)


@dataclass(frozen=True)
class TokenShare(Quantity):
    """`TokenShare` is the share of the tokens that belong to a list, such as those of a language or of a format."""

    name: ClassVar[str] = "token-share"
    unit: ClassVar[str] = "share of tokens"
    tokens: tuple[int, ...] = ()
    """Numbers of the tokens in the vocabulary."""

    def __post_init__(self) -> None:
        wanted = "numbers of tokens, 0 or more"
        require(all(token >= 0 for token in self.tokens), "quantity.tokens", self.tokens, wanted)

    def values(self, scored: Scored) -> tuple[Tensor, Tensor]:
        """Return 1 on the listed tokens, and the ordinary rows' tokens."""
        drawn = scored.batch.input_ids[:, scored.batch.prompt_width :]
        listed = torch.tensor(self.tokens, dtype=drawn.dtype, device=drawn.device)
        return torch.isin(drawn, listed).to(scored.batch.mask), scored.ordinary


QUANTITIES: dict[str, type[Quantity]] = {cls.name: cls for cls in (Entropy, Length, TokenShare)}
"""Every quantity by name."""
