"""`collate` turns samples into a batch, and `scatter` puts the statistics of its tokens in their places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from aepo.entropy.statistics import TokenStatistics
from aepo.types import Batch, BatchStatistics, Prompt, PromptVision, Sample, Vision

Look = Callable[[Prompt], PromptVision]
"""A function that returns the pixels of a prompt's images, and the positions of the prompt's tokens."""


def collate(samples: Sequence[Sample], pad_token_id: int, look: Look | None = None) -> Batch:
    """Return the samples as one batch, with prompts padded on the left and completions on the right.

    `Batch` gives the shapes.

    Args:
        samples: The samples.
        pad_token_id: The padding token.
        look: What a vision model sees of a prompt; None for a model of text, and for a trainer that has the images of
            its rows itself: the batch then has none.
    """
    completions = [sample.rollout.completion for sample in samples]
    answers = [completion.tokens for completion in completions]
    prompts = [completion.prompt.tokens for completion in completions]
    mask = _pad([[1.0] * len(tokens) for tokens in answers], 0.0)
    prompt_mask = _pad([[1] * len(tokens) for tokens in prompts], 0, left=True)
    ids = [_pad(prompts, pad_token_id, left=True), _pad(answers, pad_token_id)]
    return Batch(
        input_ids=torch.cat(ids, dim=1),
        attention_mask=torch.cat([prompt_mask, mask.long()], dim=1),
        mask=mask,
        advantages=torch.tensor([s.advantage for s in samples])[:, None] * mask,
        sampling_logprobs=_pad([completion.logprobs for completion in completions], 0.0),
        rewards=torch.tensor([s.rollout.reward for s in samples], dtype=torch.float32),
        right=torch.tensor([s.rollout.right for s in samples], dtype=torch.bool),
        groups=torch.tensor([completion.group for completion in completions]),
        extra=torch.tensor([s.extra for s in samples]),
        trained=torch.tensor([s.trained for s in samples]),
        **_vision([completion.prompt for completion in completions], mask.shape[1], look),
    )


def _vision(prompts: Sequence[Prompt], width: int, look: Look | None) -> dict[str, Any]:
    """Return the fields of a batch that images need; none if no prompt has an image.

    Args:
        prompts: The prompt of each row.
        width: T, the number of completion columns.
        look: What a vision model sees of a prompt.
    """
    if look is None or not any(prompt.images for prompt in prompts):
        return {}
    looked = {prompt.seen: look(prompt) for prompt in {prompt.seen: prompt for prompt in prompts}.values()}
    rows = [looked[prompt.seen] for prompt in prompts]
    columns = max(len(prompt.tokens) for prompt in prompts)
    positions = torch.stack([continued(row.positions, columns, width) for row in rows])
    return {"positions": positions, "vision": Vision(tuple(row.images for row in rows))}


def continued(positions: Tensor, columns: int, width: int) -> Tensor:
    """Return the positions of a row, [A, columns + width], given those of its prompt, [A, L].

    The prompt is padded on the left to `columns`, with position 0. A completion goes on after the largest position of
    the prompt, on all axes alike.
    """
    axes, length = positions.shape
    padding = positions.new_zeros(axes, columns - length)
    after = positions.max() + 1 + torch.arange(width, device=positions.device)
    return torch.cat([padding, positions, after.expand(axes, width)], dim=1)


def scatter(statistics: TokenStatistics, mask: Tensor, temperatures: Sequence[float]) -> BatchStatistics:
    """Return the statistics [N] in the places of their tokens, [B, T]; gradients flow through.

    Args:
        statistics: The statistics of the N tokens inside the mask, row by row.
        mask: A mask [B, T] that is nonzero at N places.
        temperatures: The temperatures of `statistics.tempered`, in the same order.
    """
    inside = mask.bool()

    def placed(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)

    return BatchStatistics(
        logprobs=placed(statistics.logprobs),
        entropy=None if statistics.entropy is None else placed(statistics.entropy),
        tempered={t: placed(values) for t, values in zip(temperatures, statistics.tempered, strict=True)},
        kept_entropy=None if statistics.kept_entropy is None else placed(statistics.kept_entropy),
        kept_logprobs=None if statistics.kept_logprobs is None else placed(statistics.kept_logprobs),
    )


def _pad(rows: Sequence[Sequence[float]], value: float, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    padded = [[value] * (width - len(r)) + list(r) if left else [*r, *[value] * (width - len(r))] for r in rows]
    return torch.tensor(padded, dtype=torch.float32 if isinstance(value, float) else torch.long)
