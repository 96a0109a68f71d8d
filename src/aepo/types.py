"""This module defines the stages of a batch. Each stage is a frozen type.

    Prompt -> Request -> Completion -> Rollout -> Sample -> Batch -> BatchStatistics -> loss -> Metric

The stages up to `Sample` are lists of plain values. `collate` makes a `Batch`, and from there on the values are
tensors. A stage without a reward or an advantage is another type; these fields are never None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

TokenTemperature = Callable[[Tensor], Tensor]
"""A function from the exact entropies of the next tokens at temperature 1, [B], nats, to the temperatures at which they
are drawn, [B].
"""


@dataclass(frozen=True)
class Prompt:
    """`Prompt` is one problem with its tokens.

    >>> prompt = Prompt(id="paths-3-7", tokens=(3, 7, 102), problem={"start": 3, "goal": 7})
    """

    id: str
    """The name of the problem."""
    tokens: tuple[int, ...]
    """The tokens of the prompt."""
    problem: Mapping[str, Any] = field(hash=False)
    """What the task's reward needs to know of the problem."""
    solution: tuple[int, ...] = ()
    """The tokens of a reference completion, end-of-sequence included; empty where there is none."""
    images: tuple[str, ...] = ()
    """The content hashes of the images, in the order of their places in the tokens; empty for a prompt of text."""

    @property
    def seen(self) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """Return all that the model sees: the tokens and the images. Two prompts with equal tokens may differ in it."""
        return self.tokens, self.images


@dataclass(frozen=True)
class Request:
    """`Request` asks the sampler for some completions of one prompt. They form one group."""

    prompt: Prompt
    """The prompt to complete."""
    group: int
    """The number of the group in the step. A prompt that is drawn twice has two groups."""
    count: int
    """How many completions are drawn."""
    temperature: float = 1.0
    """The temperature of all completions."""
    token_temperature: TokenTemperature | None = None
    """A factor on the temperature for each token; None for no factor."""


@dataclass(frozen=True)
class Completion:
    """`Completion` is one sampled answer."""

    prompt: Prompt
    """The prompt that it answers."""
    group: int
    """The number of its group in the step."""
    temperature: float
    """The temperature at which it was drawn."""
    tokens: tuple[int, ...]
    """Its tokens. The last one is the end-of-sequence token, unless the answer is truncated."""
    logprobs: tuple[float, ...]
    """The sampler's own log-probability of each token, nats, of the distribution that it really drew from:
    softmax(logits / temperature). NaN where no sampler drew the token.
    """
    truncated: bool
    """Whether the length limit cut the answer before the model ended it."""


@dataclass(frozen=True)
class Rollout:
    """`Rollout` is a completion with its reward."""

    completion: Completion
    """The completion."""
    reward: float
    """The verifier's reward; the full reward is 1."""
    right: bool = False
    """Whether the completion counts as right: a positive. `aepo.engines.right.RightRule` decides."""
    verdict: bool | None = None
    """What the reward function itself said of right or wrong; None if it said nothing."""
    parts: Mapping[str, float] = field(default_factory=dict, hash=False)
    """The reward of each reward function by name, before the weights, if there are several."""
    logged: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What the reward function logs of this completion, by name (TRL's `log_extra`)."""


@dataclass(frozen=True)
class Sample:
    """`Sample` is a rollout with its advantage."""

    rollout: Rollout
    """The rollout."""
    advantage: float
    """The advantage, one number for all tokens of the completion."""
    extra: bool = False
    """Whether a control added the row, for example drawn at another temperature. An extra row is trained on and never
    enters the entropy sensor.
    """
    trained: bool = True
    """False for an ordinary row that a control took out of the update: it is measured and not trained on."""


@dataclass(frozen=True)
class Pixels:
    """`Pixels` is one image as a vision model takes it."""

    patches: Tensor
    """[n, D], the values of the n patches."""
    grid: tuple[int, int, int]
    """The number of patches in time, height and width; their product is n."""
    digest: str
    """The content hash of the image."""


@dataclass(frozen=True)
class PromptVision:
    """`PromptVision` is what a vision model needs of a prompt besides its tokens."""

    images: tuple[Pixels, ...]
    """The images, in the order of their places."""
    positions: Tensor
    """[A, L], the positions of the prompt's L tokens on the A axes of the model."""


@dataclass(frozen=True)
class Vision:
    """`Vision` holds the images of a batch: a different number for each row, each of a different size."""

    rows: tuple[tuple[Pixels, ...], ...]
    """The images of each of the B rows, in the order of their places. Rows of one prompt share them."""

    def to(self, device: torch.device) -> Vision:
        """Return the images on this device; an image that rows share is moved once."""
        moved: dict[int, Pixels] = {}
        for image in (image for row in self.rows for image in row):
            if id(image) not in moved:
                moved[id(image)] = replace(image, patches=image.patches.to(device))
        return Vision(tuple(tuple(moved[id(image)] for image in row) for row in self.rows))

    def select(self, rows: Tensor) -> Vision:
        """Return the images of these rows (an index, or a bool mask [B])."""
        numbers = rows.nonzero()[:, 0] if rows.dtype == torch.bool else rows
        return Vision(tuple(self.rows[number] for number in numbers.tolist()))

    def cat(self) -> tuple[Tensor, Tensor] | None:
        """Return all images, row by row: the patches [N, D] and the grids [images, 3]; None if no row has one."""
        images = [image for row in self.rows for image in row]
        if not images:
            return None
        patches = torch.cat([image.patches for image in images])
        return patches, torch.tensor([image.grid for image in images], device=patches.device)


@dataclass(frozen=True)
class Batch:
    """`Batch` holds samples as tensors.

    It has B rows, P prompt columns, which are padded on the left, and T completion columns, which are padded on the
    right.
    """

    input_ids: Tensor
    """[B, P + T], the tokens of prompt and completion."""
    attention_mask: Tensor
    """[B, P + T], 1 on tokens, 0 on padding."""
    mask: Tensor
    """[B, T], 1.0 on completion tokens (end-of-sequence included), else 0."""
    advantages: Tensor
    """[B, T], the advantage of each token."""
    sampling_logprobs: Tensor
    """[B, T], the sampler's log-probability of each token, nats."""
    rewards: Tensor
    """[B], the verifier's rewards."""
    right: Tensor
    """[B], bool, whether the row counts as right."""
    groups: Tensor
    """[B], the numbers of the groups in the step."""
    extra: Tensor
    """[B], bool, whether a control added the row."""
    trained: Tensor
    """[B], bool, whether the row is trained on."""
    positions: Tensor | None = None
    """[B, A, P + T], the position of each token on the A axes of a vision model; None where no row has an image."""
    vision: Vision | None = None
    """The images of the rows; None where no row has one."""

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def prompt_width(self) -> int:
        """Return P, the number of prompt columns."""
        return self.input_ids.shape[1] - self.mask.shape[1]

    def to(self, device: torch.device) -> Batch:
        """Return the batch on this device."""
        return self._each(lambda values: values.to(device))

    def select(self, rows: Tensor) -> Batch:
        """Return the batch of these rows (an index, or a bool mask [B])."""
        return self._each(lambda values: values.select(rows) if isinstance(values, Vision) else values[rows])

    def _each(self, function: Callable[[Any], Any]) -> Batch:
        """Return the batch with `function` applied to each field. What is not there stays None."""
        fields: dict[str, Any] = {name: None if v is None else function(v) for name, v in vars(self).items()}
        return Batch(**fields)


@dataclass(frozen=True)
class BatchStatistics:
    """`BatchStatistics` holds the statistics of a batch's tokens under one set of weights.

    Each tensor is [B, T] and zero outside the mask. `aepo.engines.collate.scatter` makes it from the values [N] of an
    `aepo.entropy.statistics.TokenStatistics`. A statistic that was not asked for is None; `tempered` is
    then empty.
    """

    logprobs: Tensor
    """log pi(y_t) at temperature 1, nats."""
    entropy: Tensor | None = None
    """Exact entropy of pi at temperature 1, nats."""
    tempered: Mapping[float, Tensor] = field(default_factory=dict)
    """log pi^T(y_t) for each temperature T that was asked for, nats."""
    kept_entropy: Tensor | None = None
    """Exact entropy over the kept part of the vocabulary, nats."""
    kept_logprobs: Tensor | None = None
    """log pi(y_t) after renormalisation over the kept part of the vocabulary, nats; -1e20 if y_t is not kept. It has no
    gradient.
    """

    def select(self, rows: Tensor) -> BatchStatistics:
        """Return the statistics of these rows (an index, or a bool mask [B])."""
        return self.each(lambda values: values[rows])

    @classmethod
    def joined(cls, parts: Sequence[BatchStatistics]) -> BatchStatistics:
        """Return the rows of several passes together, which have the same statistics and the same columns."""
        entropies = [part.entropy for part in parts if part.entropy is not None]
        kept = [part.kept_entropy for part in parts if part.kept_entropy is not None]
        among = [part.kept_logprobs for part in parts if part.kept_logprobs is not None]
        return cls(
            logprobs=torch.cat([part.logprobs for part in parts]),
            entropy=torch.cat(entropies) if entropies else None,
            tempered={t: torch.cat([part.tempered[t] for part in parts]) for t in parts[0].tempered},
            kept_entropy=torch.cat(kept) if kept else None,
            kept_logprobs=torch.cat(among) if among else None,
        )

    def each(self, function: Callable[[Tensor], Tensor]) -> BatchStatistics:
        """Return the statistics with `function` applied to each tensor. What was not asked for stays None."""
        return BatchStatistics(
            logprobs=function(self.logprobs),
            entropy=None if self.entropy is None else function(self.entropy),
            tempered={temperature: function(values) for temperature, values in self.tempered.items()},
            kept_entropy=None if self.kept_entropy is None else function(self.kept_entropy),
            kept_logprobs=None if self.kept_logprobs is None else function(self.kept_logprobs),
        )


def asked_for(statistic: Tensor | None) -> Tensor:
    """Return the statistic.

    Raises:
        RuntimeError: It is None: the control did not ask the pass for it (see `aepo.control.base.Needs`).
    """
    if statistic is None:
        raise RuntimeError("a statistic was read that the pass over the hidden states was not asked for (see Needs)")
    return statistic


@dataclass(frozen=True)
class Metric:
    """`Metric` is a mean that is stored as a total and a count. It is divided once, at the end.

    >>> (Metric(3.0, 2) + Metric(1.0, 2)).mean
    1.0
    """

    total: float
    """The sum of the values."""
    count: float
    """The number of values."""

    @classmethod
    def of(cls, values: Tensor, mask: Tensor | None = None) -> Metric:
        """Return the sum of the masked entries, accumulated in float64, and their number.

        Args:
            values: The values, any shape.
            mask: The same shape; nonzero where an entry counts. None counts all entries.
        """
        if mask is None:
            return cls(values.double().sum().item(), values.numel())
        kept = torch.where(mask.bool(), values, torch.zeros_like(values))
        return cls(kept.double().sum().item(), mask.bool().sum().item())

    def __add__(self, other: Metric) -> Metric:
        return Metric(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> float:
        """Return total / count; NaN when nothing was counted."""
        return self.total / self.count if self.count else float("nan")
