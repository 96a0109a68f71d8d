"""The interface of a sampler: it draws many requests, each with its own temperature, in one call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from aepo.sampling.draw import Cuts
from aepo.types import Completion, Request


class Sampler(ABC):
    """`Sampler` draws completions from the current policy.

    Attributes:
        report: A function that gets the number of completions that have ended, while `sample` works; None for none. A
            sampler need not call it.
        ended: A function that gets completions that have ended, each by its number in the result of `sample` and once,
            while `sample` works; None for none. A sampler may leave out any of them.
    """

    report: Callable[[int], None] | None = None
    ended: Callable[[Mapping[int, Completion]], None] | None = None

    @abstractmethod
    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw the completions of all requests in one call.

        The same generator state, weights and requests give the same completions.

        Args:
            requests: The prompts, each with its temperature and its number of completions.
            max_tokens: The largest length of a completion, tokens.
            generator: The source of randomness.

        Returns:
            The completions in the order of `requests`, `count` in a row for each. A completion ends with an
            end-of-sequence token or with the token that completes a stop string, or is marked truncated after
            `max_tokens` tokens.
        """

    @abstractmethod
    def with_cuts(self, cuts: Cuts) -> Sampler:
        """Return the same sampler with other cuts of the distribution."""

    def refresh(self, policy: Any) -> None:  # noqa: B027
        """Take the policy's present weights; a sampler that runs on the policy itself does nothing."""

    def close(self) -> None:  # noqa: B027
        """End the processes that the sampler started; it cannot be used again."""
