"""Into a batch: `collate` makes tensors of samples, `scatter` puts statistics of N tokens back in their places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from aepo.entropy.statistics import TokenStatistics
from aepo.types import Batch, BatchStatistics, Sample


def collate(samples: Sequence[Sample], pad_token_id: int) -> Batch:
    """Left-pad prompts, right-pad completions. See `Batch` for the shapes."""
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
        groups=torch.tensor([completion.group for completion in completions]),
        extra=torch.tensor([s.extra for s in samples]),
        trained=torch.tensor([s.trained for s in samples]),
    )


def scatter(statistics: TokenStatistics, mask: Tensor, temperatures: Sequence[float]) -> BatchStatistics:
    """Put the statistics of N tokens back in their places of a batch; differentiable.

    Args:
        statistics: of the tokens inside the mask, row by row.
        mask: [B, T], nonzero at N places.
        temperatures: of `statistics.tempered`, in their order.
    """
    inside = mask.bool()

    def placed(values: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(inside, values)

    return BatchStatistics(
        logprobs=placed(statistics.logprobs),
        entropy=None if statistics.entropy is None else placed(statistics.entropy),
        tempered={t: placed(values) for t, values in zip(temperatures, statistics.tempered, strict=True)},
        kept_entropy=None if statistics.kept_entropy is None else placed(statistics.kept_entropy),
    )


def _pad(rows: Sequence[Sequence[float]], value: float, left: bool = False) -> Tensor:
    width = max(len(row) for row in rows)
    padded = [[value] * (width - len(r)) + list(r) if left else [*r, *[value] * (width - len(r))] for r in rows]
    return torch.tensor(padded, dtype=torch.float32 if isinstance(value, float) else torch.long)
