"""What every sampler offers: many requests, each with its own temperature, in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch

from aepo.types import Completion, Request


class Sampler(ABC):
    """Draws completions from the current policy."""

    @abstractmethod
    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw every request's completions in one call.

        Returns the completions in the order of `requests`, `count` in a row for each. A completion ends
        with the end-of-sequence token, or is marked truncated after `max_tokens` tokens. The same
        generator state, weights and requests give the same completions.
        """

    @abstractmethod
    def at_top_p(self, top_p: float) -> Sampler:
        """The same sampler with another top-p cut; 1 is the whole vocabulary."""

    def refresh(self, policy: Any) -> None:  # noqa: B027
        """Take the policy's present weights; nothing to do where the sampler runs on the policy's own."""

    def close(self) -> None:  # noqa: B027
        """End what the sampler started; it is not used again."""
