"""`StopStrings` finds the token with which the text of a completion first holds a stop string.

That token is the completion's last one, and it stays: it was drawn, so its log-probability is exact, and the policy is
trained to write it. Nothing follows it. A reward function sees the text of all tokens, stop string included.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aepo.errors import require

# Tokens that are decoded before the longest stop string's own: the first characters of a text that begins in the middle
# may be lost (half a character, the space of a first word).
MARGIN = 8


@dataclass(frozen=True)
class StopStrings:
    """`StopStrings` are texts that end a completion. Special tokens count with their spelling."""

    strings: tuple[str, ...]
    """The texts, at least one, none of them empty."""
    tokenizer: Any
    """The tokenizer that makes text of tokens."""

    def __post_init__(self) -> None:
        require(all(self.strings) and bool(self.strings), "stop", self.strings, "texts that are not empty")

    @property
    def window(self) -> int:
        """Return the number of last tokens that can hold a stop string: a token holds at least one byte."""
        return max(len(text.encode()) for text in self.strings) + MARGIN

    def ended(self, tails: Sequence[Sequence[int]]) -> list[bool]:
        """Return for each row whether its last tokens, at most `window`, hold a stop string."""
        texts = self.tokenizer.batch_decode([list(tail) for tail in tails], clean_up_tokenization_spaces=False)
        return [self._held(text) for text in texts]

    def length(self, tokens: Sequence[int]) -> int | None:
        """Return the number of tokens up to and with the one that completes the first stop string; None without one."""

        def holds(count: int) -> bool:
            return self._held(self.tokenizer.decode(list(tokens[:count]), clean_up_tokenization_spaces=False))

        if not holds(len(tokens)):
            return None
        return bisect_left(range(len(tokens)), True, key=lambda number: holds(number + 1)) + 1

    def _held(self, text: str) -> bool:
        return any(string in text for string in self.strings)
