"""Small pieces that many tests are made of."""

from __future__ import annotations

import torch

from aepo.collate import collate
from aepo.control.base import Measured, Scored, Step
from aepo.types import Completion, Metric, Prompt, Rollout, Sample, TokenStats


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
    return Sample(Rollout(completion, reward), advantage, extra)


def measured(
    entropy: float, step: int = 0, *, mixed: float = float("nan"), reward: float = 0.5, extra: tuple = ()
) -> Measured:
    return Measured(step, Metric(entropy, 1), Metric(mixed, 1), Metric(reward, 1), extra)


def step(number: int = 1, prompts: int = 8, group_size: int = 4, seed: int = 0) -> Step:
    return Step(number, prompts, group_size, seed)


def scored(samples: list[Sample], *, logprobs=None, entropy=None, tempered=None) -> Scored:
    batch = collate(samples, pad_token_id=0)
    shape = batch.mask.shape
    fill = lambda value: torch.zeros(shape) if value is None else torch.as_tensor(value).expand(shape)
    stats = TokenStats(fill(logprobs), fill(entropy), {t: fill(value) for t, value in (tempered or {}).items()})
    return Scored(batch, stats)
