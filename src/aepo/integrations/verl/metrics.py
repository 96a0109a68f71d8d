"""What is logged, under `aepo/` and the names of docs/metrics.md; over the ordinary rows unless the name says extra."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from aepo.control.base import Measured
from aepo.integrations.verl.loss import SUMS
from aepo.types import Metric, Sample

PREFIX = "aepo/"


def of_step(measured: Measured, samples: Sequence[Sample], sampler_logprobs: bool) -> dict[str, Any]:
    """samples: the mixed batch. sampler_logprobs: whether the rollout engine returned them."""
    scored, extra = measured.scored, measured.extra
    batch, ordinary = scored.batch, ~scored.batch.extra
    rewards, groups = batch.rewards[ordinary], batch.groups[ordinary]
    spread = [rewards[groups == group] for group in groups.unique()]
    gap = (scored.old.logprobs - batch.sampling_logprobs).abs()
    cut = [float(sample.rollout.completion.truncated) for sample in samples if not sample.extra]
    return {
        "entropy": measured.entropy.mean,
        "sampled_entropy": Metric.of(-scored.old.logprobs, scored.ordinary).mean,
        "reward": measured.reward.mean,
        "dead_groups": sum(bool((r == r[0]).all()) for r in spread) / len(spread),
        "length": batch.mask[ordinary].sum(1).mean().item(),
        "truncated": sum(cut) / len(cut),
        "mismatch": Metric.of(gap, scored.ordinary).mean if sampler_logprobs else None,
        "trained": int(batch.trained.sum()),
        "extra_completions": len(extra),
        "extra_used": sum(sample.extra for sample in samples),
        "extra_temperature": extra[0].rollout.completion.temperature if extra else None,
    }


def take_sums(update: dict[str, Any]) -> dict[str, Metric]:
    """Remove the workers' sums from verl's metrics of an update, and return them."""
    found = {}
    for name in SUMS:
        total, count = (update.pop(f"actor/{PREFIX}{name}_{part}") for part in ("total", "count"))
        found[name] = Metric(total, count)
    return found


def loggable(row: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers, as trackers take them; the rest is left out."""
    numbers = {PREFIX + name: float(value) for name, value in row.items() if isinstance(value, int | float)}
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
