"""Small pieces that many tests are made of."""

from __future__ import annotations

from dataclasses import replace

import torch

from aepo.control.base import Measured, Scored, Step
from aepo.engines.collate import collate
from aepo.entropy.statistics import logits_statistics
from aepo.types import BatchStatistics, Completion, Metric, Prompt, Rollout, Sample


def sample(
    reward: float,
    advantage: float = 0.0,
    *,
    group: int = 0,
    extra: bool = False,
    tokens: tuple[int, ...] = (1, 2),
    temperature: float = 1.0,
    number: int = 0,
) -> Sample:
    prompt = Prompt(id=f"prompt-{group}-{number}", tokens=(5, 6), problem={})
    completion = Completion(prompt, group, temperature, tokens, (-1.0,) * len(tokens), truncated=False)
    return Sample(Rollout(completion, reward, right=reward > 0.5), advantage, extra)


def measured(
    entropy: float,
    step: int = 0,
    *,
    mixed: float = float("nan"),
    reward: float = 0.5,
    extra: tuple = (),
    batch: Scored | None = None,
) -> Measured:
    """A step that measured this entropy; `batch` is what it scored, by default one token of that entropy."""
    batch = batch or scored([sample(1.0, tokens=(1,))], entropy=entropy, logprobs=-entropy, kept=entropy)
    batch = replace(batch, step=place(step))
    return Measured(Metric(entropy, 1), Metric(mixed, 1), Metric(reward, 1), Metric(reward, 1), extra, batch)


def place(
    number: int = 1, prompts: int = 8, group_size: int = 4, seed: int = 0, steps: int = 100, max_tokens: int = 10
) -> Step:
    return Step(number, steps, prompts, group_size, max_tokens, seed)


step = place


def scored(
    samples: list[Sample],
    *,
    logprobs=None,
    entropy=None,
    tempered=None,
    kept=None,
    reference=None,
    step: Step | None = None,
) -> Scored:
    """A batch of these samples; the statistics are numbers, or [B, T] lists or tensors."""
    batch = collate(samples, pad_token_id=0)
    shape = batch.mask.shape
    fill = lambda value: torch.as_tensor(0.0 if value is None else value).expand(shape) * batch.mask
    stats = BatchStatistics(
        fill(logprobs),
        fill(entropy),
        {t: fill(value) for t, value in (tempered or {}).items()},
        None if kept is None else fill(kept),
        None if kept is None else fill(0.0 if logprobs is None else logprobs),
    )
    return Scored(batch, stats, step or place(), None if reference is None else fill(reference))


def marked(control, batch: Scored, state=None) -> Scored:
    """The batch with the control's marks on it, as the loop does it after scoring."""
    return replace(batch, marks=control.mark(batch, control.initial_state() if state is None else state))


def token_policy(logits: torch.Tensor, labels) -> BatchStatistics:
    """Statistics with gradient to `logits` [B, T, V] of the sampled `labels` [B, T]."""
    stats = logits_statistics(logits, torch.as_tensor(labels))
    return BatchStatistics(stats.logprobs, stats.entropy)
