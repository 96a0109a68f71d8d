"""Collapse, explosion, and entropies that are something else."""

from __future__ import annotations

import math

from aepo.doctor.checks.base import decimals, end, finite, onset, start
from aepo.doctor.types import Confidence, Finding, Log, Series

# Of the level at the start. GRPO on the built-in task keeps 0.7 of it in 80 steps and 0.44 in 100 at three times the
# learning rate (docs/doctor.md); the entropy-mechanism paper's runs (2505.22617) end under 0.1 of it.
COLLAPSED: tuple[tuple[float, Confidence], ...] = ((0.1, "sure"), (0.25, "likely"), (0.5, "possible"))
# Under this, in nats per token, nearly all tokens are certain.
NOTHING_LEFT = 0.02
EXPLODED: tuple[tuple[float, Confidence], ...] = ((3.0, "sure"), (2.0, "likely"), (1.5, "possible"))
# Nats; less is within what prompts differ by.
LEAST_RISE = 0.2
# A closed loop that is this near its target (nats, or share of it) does as it was told.
ON_TARGET, ON_TARGET_SHARE = 0.1, 0.25
# Log of the largest vocabulary in use (256k), rounded up: no distribution over tokens has more.
LARGEST = 13.0
FEWEST = 5


def collapse(log: Log) -> list[Finding]:
    """The entropy's level has fallen to a small share of what it was."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy):
        return []
    before, now = start(entropy), end(entropy)
    share = now / before
    confidence: Confidence | None = next((how for limit, how in COLLAPSED if share < limit), None)
    if now < NOTHING_LEFT < before and log.entropy.kind != "sum":
        confidence = "sure"
    if confidence is None:
        return []
    limit = max(share * 1.5, 0.5 * share + 0.25) if confidence == "possible" else COLLAPSED[1][0]
    return [
        Finding(
            kind="collapse",
            step=onset(entropy, lambda value: value < limit * before),
            evidence=f"entropy fell from {decimals(before)} to {decimals(now)} ({share:.0%} of its start)"
            f"{_reward(log)}",
            confidence=_as_sure_as_the_key(log, confidence),
            advice="hold the entropy at a target (aepo, or a bonus with an adapted coefficient), raise the upper clip "
            "bound, lower the learning rate; go back to a checkpoint from before this step",
        )
    ]


def explosion(log: Log) -> list[Finding]:
    """The entropy's level has risen to a multiple of what it was."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy):
        return []
    before, now = start(entropy[: max(3, len(entropy) // 8)]), end(entropy)
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
    """What is called entropy is a sampled estimate, a sum, or named after a loss."""
    if "entropy" not in log.series or not log.entropy.then:
        return []
    key = log.keys.get("entropy", "entropy")
    length = finite(log.get("length"))
    each = f"; at {end(length):.0f} tokens its end is about {end(finite(log.get('entropy'))) / end(length):.3g} per token"
    evidence = f"{log.framework} logs `{key}`, which is {log.entropy.says}"
    kind = "entropy is exact" if log.entropy.kind == "exact" else f"entropy is {_KINDS[log.entropy.kind]}"
    return [
        Finding(
            kind="entropy's name" if log.entropy.kind == "exact" else kind,
            step=None,
            evidence=evidence + (each if log.entropy.kind == "sum" and length else ""),
            confidence="sure",
            advice=log.entropy.then,
            serious=False,
        )
    ]


_KINDS = {"sampled": "a sampled estimate", "sum": "a sum", "unknown": "of unknown meaning"}


def impossible(log: Log) -> list[Finding]:
    """Values that no entropy per token has, whatever the key's documentation says."""
    entropy = finite(log.get("entropy"))
    high = next((point for point in entropy if point[1] > LARGEST), None)
    low = next((point for point in entropy if point[1] < 0), None)
    found = []
    if high and log.entropy.kind != "sum":
        found.append((high, f"more than log of any vocabulary ({LARGEST:g})", "a sum over tokens", "divide by the length"))
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
    """Completions of one prompt repeat each other."""
    distinct = finite(log.get("distinct"))
    if len(distinct) < FEWEST or end(distinct) > 0.5 or start(distinct) < 0.75:
        return []
    before, now = start(distinct), end(distinct)
    return [
        Finding(
            kind="collapse",
            step=onset(distinct, lambda value: value <= 0.5),
            evidence=f"of a prompt's completions {now:.0%} differ from each other at the end, {before:.0%} at the start",
            confidence="sure" if now < 0.25 else "likely",
            advice="the policy repeats itself: hold its entropy, and go back to a checkpoint from before this step",
        )
    ]


def _on_target(log: Log, entropy: Series) -> bool:
    target = finite(log.get("target_entropy"))
    if not target:
        return False
    wanted = end(target)
    return abs(end(entropy) - wanted) <= max(ON_TARGET, ON_TARGET_SHARE * wanted)


def _as_sure_as_the_key(log: Log, confidence: Confidence) -> Confidence:
    """A sum moves with the length, an undocumented number for unknown reasons."""
    return confidence if log.entropy.kind in ("exact", "sampled") else "possible"


def _reward(log: Log) -> str:
    reward = finite(log.get("reward"))
    if not reward or not math.isfinite(end(reward)):
        return ""
    return f"; reward went from {decimals(start(reward))} to {decimals(end(reward))}"
