"""Checks of stability: updates that are too large, NaN and infinity, and jumps after a resume."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from aepo.doctor.checks.base import decimals, finite, onset, start
from aepo.doctor.checks.noise import Limits, capped, changed
from aepo.doctor.types import Finding, Log, LogSeries

# Mean KL(pi_old, pi) over a step's updates, nats per token; PPO's usual early stop is at 0.01 to 0.05.
LEAPS: Limits = ((1.0, "sure"), (0.3, "likely"))
# Up to this share of the steps, leaps after which the reward holds are single steps.
SINGLE = 0.02
# Share of its level that is left of a reward that holds.
HOLDS = 0.5
# Multiples of the gradient norm's level at the start.
GROWN: Limits = ((20.0, "likely"), (10.0, "possible"))
# At most AROUND and at least LEAST_BEFORE steps on either side of a resume are compared. JUMP is in standard deviations
# of the steps before the resume.
AROUND, LEAST_BEFORE = 10, 4
JUMP = 4.0
# Share of the level. A smaller jump is no instability even if the curve was very smooth.
LEAST_JUMP = 0.2
RESUMED = ("entropy", "reward", "length", "approximate_kl", "gradient_norm", "mismatch", "mismatch_kl")
# A correlation of constant values is NaN without harm, and an evaluation may have no number for a step.
MAY_BE_NAN = frozenset({"mismatch_correlation", "evaluation"})


def not_finite(log: Log) -> list[Finding]:
    """Find NaN or infinity in any series of the log."""
    bad = {
        name: broken
        for name, series in log.series.items()
        if name not in MAY_BE_NAN and (broken := [point for point in series if not math.isfinite(point[1])])
    }
    if not bad:
        return []
    first = min(bad, key=lambda name: bad[name][0][0])
    step, value = bad[first][0]
    others = [f"`{log.keys.get(name, name)}`" for name in bad if name != first]
    also = f", and {', '.join(sorted(others))} have such values too" if others else ""
    return [
        Finding(
            kind="not a number",
            step=step,
            evidence=f"`{log.keys.get(first, first)}` is {value} "
            f"({sum(map(len, bad.values()))} such values in the log){also}",
            confidence="sure",
            advice="go back to a checkpoint from before this step; lower the learning rate, clip the gradient, and "
            "look for empty batches and log of 0",
        )
    ]


def leap(log: Log) -> list[Finding]:
    """Find a step whose updates moved the policy too far."""
    series: LogSeries = tuple((step, abs(value)) for step, value in finite(log.get("approximate_kl")))
    if not series:
        return []
    step, worst = max(series, key=lambda point: point[1])
    confidence = next((how for limit, how in LEAPS if worst >= limit), None)
    if confidence is None:
        return []
    confidence = capped(confidence, len(series))
    far = [at for at, value in series if value >= LEAPS[-1][0]]
    first = far[0]
    held = {_reward_holds(log, at) for at in far}
    if len(series) >= AROUND and False not in held:
        few = len(far) <= max(1, SINGLE * len(series))
        # Where the log ends too soon to show whether the reward holds, the size of the leap says how sure it is.
        confidence = "possible" if few and (held == {True} or worst < LEAPS[0][0]) else "likely"
    return [
        Finding(
            kind="explosion",
            step=first,
            evidence=f"`{log.keys.get('approximate_kl')}` (KL of one step's updates) reached {decimals(worst)} nats "
            f"per token at step {step}",
            confidence=confidence,
            advice="lower the learning rate, warm it up, clip the gradient; what was learned before this step is "
            "probably lost",
        )
    ]


def _reward_holds(log: Log, at: int) -> bool | None:
    """Return whether at least the share HOLDS of the reward's level before a step is left after it.

    The result is None if the log ends too soon to say.
    """
    reward = finite(log.get("reward"))
    # The reward of a step is measured before the step's update.
    before = [value for step, value in reward if step <= at][-AROUND:]
    after = [value for step, value in reward if step > at][:AROUND]
    if not reward:
        return False
    if not before or len(after) < LEAST_BEFORE:
        return None
    noise = 3 * math.hypot(*(stdev(part) / math.sqrt(len(part)) for part in (before, after) if len(part) > 1))
    return fmean(after) + noise >= fmean(before) - (1 - HOLDS) * abs(fmean(before))


def gradient(log: Log) -> list[Finding]:
    """Find a gradient norm whose level at the end is a multiple of its level at the start."""
    series = finite(log.get("gradient_norm"))
    if len(series) < AROUND or start(series) <= 0:
        return []
    change = changed(series, GROWN, falls=False)
    if change is None:
        return []
    return [
        Finding(
            kind="explosion",
            step=onset(series, lambda value: value >= GROWN[-1][0] * change.before, change.width),
            evidence=f"`{log.keys.get('gradient_norm', 'gradient_norm')}` (norm of the gradient) rose from "
            f"{decimals(change.before)} to {decimals(change.after)}",
            confidence=change.confidence,
            advice="clip the gradient, lower the learning rate; look for few very long or very unlikely completions",
        )
    ]


def after_resume(log: Log) -> list[Finding]:
    """Find levels that jump at a step at which the run was resumed."""
    return [finding for step in log.resumes if (finding := _jump(log, step))]


def _jump(log: Log, at: int) -> Finding | None:
    jumps = []
    for name in RESUMED:
        series = finite(log.get(name))
        before = [value for step, value in series if step < at][-AROUND:]
        after = [value for step, value in series if step >= at][:AROUND]
        if len(before) < LEAST_BEFORE or len(after) < LEAST_BEFORE:
            continue
        level, moved = fmean(before), fmean(after) - fmean(before)
        noise = stdev(before)
        if abs(moved) > max(JUMP * noise, LEAST_JUMP * abs(level)) and moved:
            size = abs(moved) / noise if noise else math.inf
            jumps.append((size, f"{name} {decimals(level)} to {decimals(fmean(after))}"))
    if not jumps:
        return None
    jumps.sort(reverse=True)
    return Finding(
        kind="instability after resume",
        step=at,
        evidence=f"from the steps before the resume to those after it: {', '.join(text for _, text in jumps)}",
        confidence="likely" if len(jumps) > 1 or jumps[0][0] > 3 * JUMP else "possible",
        advice="see that optimizer state, step of the schedule, reference model, position in the data and the "
        "sampler's weights were all restored",
    )
