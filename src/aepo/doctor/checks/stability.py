"""Checks of stability: updates that are too large, lost rewards, NaN and infinity, and jumps after a resume."""

from __future__ import annotations

import math
from statistics import fmean, median, stdev

from aepo.doctor.checks.base import decimals, end, finite, onset, start
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

# Mean KL(pi_old, pi) over a step's updates, nats per token; PPO's usual early stop is at 0.01 to 0.05.
LEAPS: tuple[tuple[float, Confidence], ...] = ((1.0, "sure"), (0.3, "likely"))
# Multiples of the gradient norm's level at the start.
GROWN: tuple[tuple[float, Confidence], ...] = ((30.0, "likely"), (10.0, "possible"))
# A reward is lost if at most this share of its best level is left, and if that level was at least WORTH high.
LOST = 0.2
WORTH = 0.05
# If rewards go below 0, their lowest possible value is unknown. A loss is then likely only if the reward fell by at
# least this, and by at least this times the largest level.
FALL = 0.5
# At most AROUND and at least LEAST_BEFORE steps on either side of a resume are compared. JUMP is in standard deviations
# of the steps before the resume.
AROUND, LEAST_BEFORE = 10, 4
JUMP = 4.0
# Share of the level. A smaller jump is no instability even if the curve was very smooth.
LEAST_JUMP = 0.2
RESUMED = ("entropy", "reward", "length", "approximate_kl", "gradient_norm", "mismatch", "mismatch_kl")
NAMES = ("entropy", "reward", "gradient_norm", "approximate_kl", "ratio", "mismatch", "mismatch_kl", "sampled_entropy")


def not_finite(log: Log) -> list[Finding]:
    """Find NaN or infinity in the measurements of `NAMES`."""
    bad = [
        (step, log.keys.get(name, name), value)
        for name in NAMES
        for step, value in log.get(name)
        if not math.isfinite(value)
    ]
    if not bad:
        return []
    step, key, value = min(bad, key=lambda entry: entry[0])
    return [
        Finding(
            kind="not a number",
            step=step,
            evidence=f"`{key}` is {value} ({len(bad)} such values in the log)",
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
    first = next(at for at, value in series if value >= LEAPS[-1][0])
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


def gradient(log: Log) -> list[Finding]:
    """Find a gradient norm whose level at the end is a multiple of its level at the start."""
    series = finite(log.get("gradient_norm"))
    if len(series) < AROUND or start(series) <= 0:
        return []
    growth = end(series) / start(series)
    confidence = next((how for limit, how in GROWN if growth >= limit), None)
    if confidence is None:
        return []
    return [
        Finding(
            kind="explosion",
            step=onset(series, lambda value: value >= GROWN[-1][0] * start(series)),
            evidence=f"the norm of the gradient rose from {decimals(start(series))} to {decimals(end(series))}",
            confidence=confidence,
            advice="clip the gradient, lower the learning rate; look for few very long or very unlikely completions",
        )
    ]


def reward_lost(log: Log) -> list[Finding]:
    """Find a reward that fell from its best level to 0, or to the lowest level of the log if that is below 0."""
    reward = finite(log.get("reward"))
    if len(reward) < AROUND:
        return []
    threes = [[value for _, value in reward[i : i + 3]] for i in range(len(reward) - 2)]
    best, bottom = max(start(reward), *map(fmean, threes)), min(0.0, *map(median, threes))
    largest, now = max(abs(best), abs(bottom)), end(reward)
    left = bottom + LOST * (best - bottom)
    if best - bottom < max(WORTH, LEAST_JUMP * largest) or now > left:
        return []
    confidence: Confidence = "sure" if now <= bottom + LOST / 4 * (best - bottom) else "likely"
    below_zero = bottom < -LOST * best
    if below_zero:
        confidence = "likely" if best - now >= FALL * max(1.0, largest) else "possible"
    return [
        Finding(
            kind="reward lost",
            step=onset(reward, lambda value: value <= left),
            evidence=f"reward fell from a best level of {decimals(best)} to {decimals(now)}"
            f"{', the bottom of this log' if below_zero else ''}",
            confidence=confidence,
            advice="go back to a checkpoint from before this step; look at its KL, gradient norm and completions",
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
