"""The stages of a batch, one frozen type each.

    Prompt -> Request -> Completion -> Rollout -> Sample -> Batch -> BatchStatistics -> loss -> Metric

Lists of plain values until `collate` makes a `Batch`; tensors after it. A stage that lacks something
(a reward, an advantage) is another type, never a field that may be None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import torch
from torch import Tensor

# Exact entropies of the tokens' distributions at temperature 1, [B] -> the temperatures to draw them at, [B].
TokenTemperature = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Prompt:
    """One problem, tokenised.

    solution: the tokens of a reference completion, end-of-sequence included; empty where there is none.

    >>> Prompt(id="paths-3-7", tokens=(3, 7, 102), problem={"start": 3, "goal": 7})
    """

    id: str
    tokens: tuple[int, ...]
    problem: Mapping[str, Any] = field(hash=False)
    solution: tuple[int, ...] = ()


@dataclass(frozen=True)
class Request:
    """What to draw: `count` completions of `prompt` at one temperature, all of them in one `group`.

    `group` numbers the groups of a step; a prompt that is drawn twice has two groups. `token_temperature`, if
    there is one, multiplies the temperature token by token.
    """

    prompt: Prompt
    group: int
    count: int
    temperature: float = 1.0
    token_temperature: TokenTemperature | None = None


@dataclass(frozen=True)
class Completion:
    """One sampled answer.

    `tokens` holds the end-of-sequence token when the model ended by itself; otherwise the answer was cut
    at the length limit and `truncated` is true. `logprobs` (nats, one per token) are the sampler's own,
    of the distribution it really drew from: softmax(logits / temperature).
    """

    prompt: Prompt
    group: int
    temperature: float
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    truncated: bool


# A completion is right if its reward is above this share of the full reward, 1.
RIGHT_ABOVE = 0.5


@overload
def is_right(reward: float) -> bool: ...
@overload
def is_right(reward: Tensor) -> Tensor: ...
def is_right(reward: float | Tensor) -> bool | Tensor:
    """Return whether a reward counts as right, for one reward or elementwise; the one place that decides it."""
    return reward > RIGHT_ABOVE


@dataclass(frozen=True)
class Rollout:
    """A completion with its reward."""

    completion: Completion
    reward: float


@dataclass(frozen=True)
class Sample:
    """A rollout with its advantage, one number for all its tokens.

    `extra` marks rows that a control added (drawn at another temperature): they are trained on and never
    enter the entropy sensor. `trained` is false for ordinary rows that a control took out of the update:
    they are measured and not trained on.
    """

    rollout: Rollout
    advantage: float
    extra: bool = False
    trained: bool = True


@dataclass(frozen=True)
class Batch:
    """Samples as tensors; B rows, P prompt columns (left-padded), T completion columns (right-padded).

    input_ids, attention_mask: [B, P + T]. mask: [B, T], 1.0 on completion tokens (end-of-sequence
    included), else 0. advantages: [B, T]. sampling_logprobs: [B, T]. rewards, groups: [B].
    extra, trained: bool [B].
    """

    input_ids: Tensor
    attention_mask: Tensor
    mask: Tensor
    advantages: Tensor
    sampling_logprobs: Tensor
    rewards: Tensor
    groups: Tensor
    extra: Tensor
    trained: Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def prompt_width(self) -> int:
        """P, the number of prompt columns."""
        return self.input_ids.shape[1] - self.mask.shape[1]

    def to(self, device: torch.device) -> Batch:
        """The batch on this device."""
        return Batch(**{name: value.to(device) for name, value in vars(self).items()})

    def select(self, rows: Tensor) -> Batch:
        """The batch of these rows (an index or a bool mask, [B])."""
        return Batch(**{name: value[rows] for name, value in vars(self).items()})


@dataclass(frozen=True)
class BatchStatistics:
    """`BatchStatistics` holds what one forward pass yields for a batch, each [B, T] and zero outside the mask.

    It is `aepo.entropy.statistics.TokenStatistics` ([N]) put back in the places of the batch's tokens. A statistic that
    was not asked for is None.
    """

    logprobs: Tensor
    """log pi(y_t) at temperature 1, nats."""
    entropy: Tensor | None = None
    """Exact entropy of pi at temperature 1, nats."""
    tempered: Mapping[float, Tensor] = field(default_factory=dict)
    """log pi^T(y_t) for each temperature T that was asked for, nats."""
    kept_entropy: Tensor | None = None
    """Exact entropy over the kept part of the vocabulary, nats."""

    def select(self, rows: Tensor) -> BatchStatistics:
        """These rows (an index or a bool mask, [B])."""
        return self.each(lambda values: values[rows])

    @classmethod
    def joined(cls, parts: Sequence[BatchStatistics]) -> BatchStatistics:
        """Join the rows of several passes that were asked for the same statistics and have the same T."""
        entropies = [part.entropy for part in parts if part.entropy is not None]
        kept = [part.kept_entropy for part in parts if part.kept_entropy is not None]
        return cls(
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.cat(entropies) if entropies else None,
            tempered={t: torch.cat([part.tempered[t] for part in parts]) for t in parts[0].tempered},
            kept_entropy=torch.cat(kept) if kept else None,
        )

    def each(self, function: Callable[[Tensor], Tensor]) -> BatchStatistics:
        """The statistics with `function` applied to each tensor; what was not asked for stays None."""
        return BatchStatistics(
            logprobs=function(self.logprobs),
            entropy=None if self.entropy is None else function(self.entropy),
            tempered={temperature: function(values) for temperature, values in self.tempered.items()},
            kept_entropy=None if self.kept_entropy is None else function(self.kept_entropy),
        )


def asked_for(statistic: Tensor | None) -> Tensor:
    """Return the statistic; RuntimeError if the pass was not asked for it (see `Needs`)."""
    if statistic is None:
        raise RuntimeError("a statistic was read that the pass over the hidden states was not asked for (see Needs)")
    return statistic


@dataclass(frozen=True)
class Metric:
    """A mean carried as (total, count) and divided once, at the end.

    >>> (Metric(3.0, 2) + Metric(1.0, 2)).mean
    1.0
    """

    total: float
    count: float

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Metric:
        """Sum over the masked entries and their number, accumulated in float64."""
        if mask is None:
            return cls(values.double().sum().item(), values.numel())
        kept = torch.where(mask.bool(), values, torch.zeros_like(values))
        return cls(kept.double().sum().item(), mask.bool().sum().item())

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """total / count; NaN when nothing was counted."""
        return self.total / self.count if self.count else float("nan")
