"""Checks of the entropy: collapse, explosion, dips, and numbers that are not an entropy per token."""

from __future__ import annotations

import math
from statistics import median

from aepo.doctor.checks.base import decimals, end, finite, onset, start, window
from aepo.doctor.checks.noise import FEW, OF_MEDIAN, Limits, changed, risen, standard_error
from aepo.doctor.checks.reward import falls_with, is_solved
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

# Shares of the level at the start. 100 sound steps of the built-in job leave 0.29 to 0.8 of it (docs/doctor.md).
COLLAPSED: Limits = ((0.1, "sure"), (0.25, "likely"), (0.5, "possible"))
# Nats per token. Below this nearly all tokens are certain.
NOTHING_LEFT = 0.02
# Multiples of the level at the start.
EXPLODED: Limits = ((3.0, "sure"), (2.0, "likely"), (1.5, "possible"))
# Nats. The entropy differs by less than this from prompt to prompt.
LEAST_RISE = 0.2
# Nats per token. A rise up to this level is no explosion while the reward is steady: it only began low.
ORDINARY = 1.0
# A closed loop whose entropy is within this distance of its target (nats, or share of the target) is on target.
ON_TARGET, ON_TARGET_SHARE = 0.1, 0.25
# A dip is the lowest median of this many logged steps, so that it lasts five or more. It is over at this share of the
# start. It is searched at many places, so that it counts from more standard errors than a change.
DIP, RECOVERED, DIP_BY = 9, 0.5, 4.0
# Log of the largest vocabulary in use (256k), rounded up: no distribution over tokens has a larger entropy.
LARGEST = 13.0
FEWEST = 5


def collapse(log: Log) -> list[Finding]:
    """Find an entropy whose level at the end is a small share of its level at the start; silent for a solved task."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy) or is_solved(log):
        return []
    change = changed(entropy, COLLAPSED, falls=True)
    if change is None:
        return []
    before, now = change.before, change.after
    confidence = change.confidence
    if now < NOTHING_LEFT and log.entropy.kind != "sum" and len(entropy) >= FEW:
        confidence = "sure"
    return [
        Finding(
            kind="collapse",
            step=onset(entropy, lambda value: value < COLLAPSED[-1][0] * before, change.width),
            evidence=f"entropy fell from {decimals(before)} to {decimals(now)} ({now / before:.0%} of its start)"
            f"{_reward(log)}",
            confidence=_as_sure_as_the_key(log, confidence),
            advice="hold the entropy at a target (aepo, or a bonus with an adapted coefficient), raise the upper clip "
            "bound, lower the learning rate; go back to a checkpoint from before this step",
        )
    ]


def explosion(log: Log) -> list[Finding]:
    """Find an entropy whose level at the end is a multiple of its level at the start.

    A rise to at most `ORDINARY` nats, with a reward that does not fall, is reported as a fact.
    """
    entropy = finite(log.get("entropy"))
    if len(entropy) < FEWEST or start(entropy) <= 0 or _on_target(log, entropy):
        return []
    change = changed(entropy, EXPLODED, falls=False)
    if change is None or change.after - change.before < LEAST_RISE:
        return []
    before, now = change.before, change.after
    harmless = now <= ORDINARY and log.entropy.kind != "sum" and bool(finite(log.get("reward"))) and not falls_with(log)
    return [
        Finding(
            kind="entropy rose from a low start" if harmless else "explosion",
            step=onset(entropy, lambda value: value > EXPLODED[-1][0] * before, change.width),
            evidence=f"entropy rose from {decimals(before)} to {decimals(now)} ({now / before:.1f} times its start)"
            f"{_reward(log)}",
            confidence=_as_sure_as_the_key(log, change.confidence),
            advice="no fault by itself: the level is ordinary and the reward did not fall; watch whether it goes on"
            if harmless
            else "lower the entropy bonus (or let a controller set it), the learning rate or the sampling "
            "temperature; look whether completions are still language",
            serious=not harmless,
        )
    ]


def dip(log: Log) -> list[Finding]:
    """Find an entropy that collapsed in the middle of the log and came back."""
    entropy = finite(log.get("entropy"))
    if len(entropy) < 3 * DIP or start(entropy) <= 0 or log.get("target_entropy"):
        return []
    floor = 1e-9
    logs = [math.log(max(value, floor)) for _, value in entropy]
    wide = window(len(logs))
    before, after = median(logs[:wide]), median(logs[-wide:])
    if after < before + math.log(RECOVERED):
        return []
    medians = [median(logs[at : at + DIP]) for at in range(len(logs) - DIP + 1)]
    lowest = min(medians)
    # The dip itself is no noise.
    error = standard_error([value for value in logs if value >= before + math.log(RECOVERED)])
    margin = DIP_BY * OF_MEDIAN * math.hypot(error(wide), error(DIP))
    # A dip in the last steps would be a collapse, which has a check of its own.
    beyond = lowest - min(before, after) + margin
    confidence = next((how for limit, how in COLLAPSED if beyond < math.log(limit)), None)
    if confidence is None or lowest > math.log(end(entropy)) + math.log(RECOVERED):
        return []
    low = [entropy[at + DIP // 2][0] for at, level in enumerate(medians) if level < before + math.log(RECOVERED)]
    return [
        Finding(
            kind="entropy dip",
            step=low[0],
            evidence=f"entropy fell from {decimals(math.exp(before))} to {decimals(math.exp(lowest))} between step "
            f"{low[0]} and step {low[-1]} and came back to {decimals(math.exp(after))}{_reward(log)}",
            confidence=_as_sure_as_the_key(log, confidence),
            advice="look at the completions of these steps, at the learning rate and at changes of the data; a run "
            "that collapsed once can do so again: hold the entropy at a target",
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
    if len(distinct) < FEWEST or end(distinct) > 0.5 or start(distinct) < 0.75 or risen(distinct) > -3:
        return []
    before, now = start(distinct), end(distinct)
    return [
        Finding(
            kind="collapse",
            step=onset(distinct, lambda value: value <= 0.5),
            evidence=f"`{log.keys.get('distinct', 'distinct')}`: of a prompt's completions {now:.0%} differ at the "
            f"end, {before:.0%} at the start",
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
    return f"; reward went from {decimals(start(reward))} to {decimals(end(reward))}" if reward else ""
