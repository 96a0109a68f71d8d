"""Checks of the entropy: collapse, explosion, and numbers that are not an entropy per token."""

from __future__ import annotations

import math

from aepo.doctor.checks.base import decimals, end, finite, onset, start
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

# Shares of the level at the start. 100 sound steps of the built-in job leave 0.29 to 0.8 of it (docs/doctor.md).
COLLAPSED: tuple[tuple[float, Confidence], ...] = ((0.1, "sure"), (0.25, "likely"), (0.5, "possible"))
# Nats per token. Below this nearly all tokens are certain.
NOTHING_LEFT = 0.02
# Multiples of the level at the start.
EXPLODED: tuple[tuple[float, Confidence], ...] = ((3.0, "sure"), (2.0, "likely"), (1.5, "possible"))
# Nats. The entropy differs by less than this from prompt to prompt.
LEAST_RISE = 0.2
# A closed loop whose entropy is within this distance of its target (nats, or share of the target) is on target.
ON_TARGET, ON_TARGET_SHARE = 0.1, 0.25
# Log of the largest vocabulary in use (256k), rounded up: no distribution over tokens has a larger entropy.
LARGEST = 13.0
FEWEST = 5


def collapse(log: Log) -> list[Finding]:
    """Find an entropy whose level at the end is a small share of its level at the start."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy):
        return []
    before, now = start(entropy), end(entropy)
    share = now / before
    confidence: Confidence | None = next((how for limit, how in COLLAPSED if share < limit), None)
    if confidence is None:
        return []
    if now < NOTHING_LEFT and log.entropy.kind != "sum":
        confidence = "sure"
    return [
        Finding(
            kind="collapse",
            step=onset(entropy, lambda value: value < COLLAPSED[-1][0] * before),
            evidence=f"entropy fell from {decimals(before)} to {decimals(now)} ({share:.0%} of its start)"
            f"{_reward(log)}",
            confidence=_as_sure_as_the_key(log, confidence),
            advice="hold the entropy at a target (aepo, or a bonus with an adapted coefficient), raise the upper clip "
            "bound, lower the learning rate; go back to a checkpoint from before this step",
        )
    ]


def explosion(log: Log) -> list[Finding]:
    """Find an entropy whose level at the end is a multiple of its level at the start."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy):
        return []
    before, now = start(entropy), end(entropy)
    confidence: Confidence | None = next((how for limit, how in EXPLODED if now > limit * before), None)
    if confidence is None or now - before < LEAST_RISE:
        return []
    return [
        Finding(
            kind="explosion",
            step=onset(entropy, lambda value: value > EXPLODED[-1][0] * before),
            evidence=f"entropy rose from {decimals(before)} to {decimals(now)} ({now / before:.1f} times its start)"
            f"{_reward(log)}",
            confidence=_as_sure_as_the_key(log, confidence),
            advice="lower the entropy bonus (or let a controller set it), the learning rate or the sampling "
            "temperature; look whether completions are still language",
        )
    ]


def meaning(log: Log) -> list[Finding]:
    """Find an entropy key that logs a sampled estimate or a sum, or whose name says that it is a loss."""
    if "entropy" not in log.series or not log.entropy.then:
        return []
    key = log.keys.get("entropy", "entropy")
    evidence = f"{log.framework} logs `{key}`, which is {log.entropy.says}"
    return [
        Finding(
            kind=_KINDS[log.entropy.kind],
            step=None,
            evidence=evidence + (_per_token(log) if log.entropy.kind == "sum" else ""),
            confidence="sure",
            advice=log.entropy.then,
            serious=False,
        )
    ]


def _per_token(log: Log) -> str:
    entropy, length = finite(log.get("entropy")), finite(log.get("length"))
    if not entropy or not length or end(length) <= 0:
        return ""
    return f"; at {end(length):.0f} tokens its end is about {end(entropy) / end(length):.3g} per token"


_KINDS = {
    "exact": "entropy named a loss",
    "sampled": "entropy is a sampled estimate",
    "sum": "entropy is a sum",
    "unknown": "entropy is undocumented",
}


def impossible(log: Log) -> list[Finding]:
    """Find values that no entropy per token can have, whatever the trainer documents: below 0, or above `LARGEST`."""
    entropy = finite(log.get("entropy"))
    high = next((point for point in entropy if point[1] > LARGEST), None)
    low = next((point for point in entropy if point[1] < 0), None)
    found = []
    if high and log.entropy.kind != "sum":
        found.append(
            (high, f"more than log of any vocabulary ({LARGEST:g})", "a sum over tokens", "divide by the length")
        )
    if low:
        found.append((low, "less than zero", "with the sign of a loss, or a loss", "turn the sign before you read it"))
    key = log.keys.get("entropy", "entropy")
    return [
        Finding(
            kind="entropy is no entropy",
            step=step,
            evidence=f"`{key}` is {decimals(value)}, {why}: this is {what}",
            confidence="sure",
            advice=advice,
            serious=False,
        )
        for (step, value), why, what, advice in found
    ]


def few_distinct(log: Log) -> list[Finding]:
    """Find a run in which completions of one prompt repeat each other."""
    distinct = finite(log.get("distinct"))
    if len(distinct) < FEWEST or end(distinct) > 0.5 or start(distinct) < 0.75:
        return []
    before, now = start(distinct), end(distinct)
    return [
        Finding(
            kind="collapse",
            step=onset(distinct, lambda value: value <= 0.5),
            evidence=f"of a prompt's completions {now:.0%} differ at the end, {before:.0%} at the start",
            confidence="sure" if now < 0.25 else "likely",
            advice="the policy repeats itself: hold its entropy, and go back to a checkpoint from before this step",
        )
    ]


def _on_target(log: Log, entropy: LogSeries) -> bool:
    target = finite(log.get("target_entropy"))
    if not target:
        return False
    wanted = end(target)
    return abs(end(entropy) - wanted) <= max(ON_TARGET, ON_TARGET_SHARE * wanted)


def _as_sure_as_the_key(log: Log, confidence: Confidence) -> Confidence:
    """Lower the confidence to possible for a sum, which moves with the length, and for an undocumented number."""
    return confidence if log.entropy.kind in ("exact", "sampled") else "possible"


def _reward(log: Log) -> str:
    reward = finite(log.get("reward"))
    if not reward or not math.isfinite(end(reward)):
        return ""
    return f"; reward went from {decimals(start(reward))} to {decimals(end(reward))}"
