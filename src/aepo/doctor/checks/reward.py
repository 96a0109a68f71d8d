"""Checks of the reward: lost, without movement, drifting apart from the evaluation; and whether the task is solved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean, median

from aepo.doctor.checks.base import decimals, end, finite, onset, percent, start, window
from aepo.doctor.checks.noise import FEW, FIRST, LAST, SURE_BY, StandardError, capped, risen, standard_error, widths
from aepo.doctor.types import Confidence, Finding, Log

# A reward is lost if at most this share of its best level is left, and if that level was at least WORTH high.
LOST = 0.2
WORTH = 0.05
# Share of the level. A smaller fall is no loss even if the curve was very smooth.
LEAST_FALL = 0.2
# If rewards go below 0, their lowest possible value is unknown. A loss is then likely only if the reward fell by at
# least this, and by at least this times the largest level.
FALL = 0.5
# The best level is searched at every place of the log, so that it counts from this many standard errors.
LOST_BY = 4.0
# A reward in [.., 1] is at its top from here; TOPPED: share of groups without differences, where the top is unknown.
# If most completions are cut at the limit, a high reward is no solved task.
SOLVED, TOPPED, MOSTLY = 0.95, 0.9, 0.5
# Logged steps in which a reward that is always the same number is a finding.
CONSTANT: tuple[tuple[int, Confidence], ...] = ((100, "likely"), (20, "possible"))
# A noisy reward that does not rise is a question only after this many logged steps.
LONG = 100
# Standard errors, and Kendall's rank statistic in standard deviations.
MOVES = 3.0
DRIFTS: tuple[tuple[float, Confidence], ...] = ((3.0, "sure"), (2.0, "likely"))
# Evaluations, and the share of its best level that an evaluation must lose.
FEWEST_EVALUATIONS, WORSE = 5, 0.1


def is_solved(log: Log) -> bool:
    """Return whether the reward is at its top at the end: near 1, or at its highest with groups that do not differ."""
    reward, cut = finite(log.get("reward")), finite(log.get("truncated"))
    if not reward or (cut and end(cut) > MOSTLY):
        return False
    top, now = max(value for _, value in reward), end(reward)
    if top <= 1 + 1e-6:
        return now >= SOLVED
    dead = finite(log.get("dead_groups"))
    return bool(dead) and end(dead) >= TOPPED and now >= SOLVED * top and risen(reward) > MOVES


def falls_with(log: Log) -> bool:
    """Return whether the reward fell by more than its noise explains, and by a tenth of its level or more."""
    reward = finite(log.get("reward"))
    if not reward:
        return False
    fall = start(reward) - end(reward)
    return risen(reward) < -MOVES and fall > 0.1 * max(abs(start(reward)), abs(end(reward)))


def reward_lost(log: Log) -> list[Finding]:
    """Find a reward that fell from its best level to 0, or to the lowest level of the log if that is below 0."""
    reward = finite(log.get("reward"))
    if len(reward) < FEW:
        return []
    values = [value for _, value in reward]
    threes = [median(values[at : at + FIRST]) for at in range(len(values) - FIRST + 1)]
    values = values[:FIRST] + _within(values)[FIRST:]
    error = standard_error(values)
    bottom = min(0.0, min(threes) + LOST_BY * error(FIRST))
    best = max(_best(values, error), bottom)
    # The noise of shares shrinks with their level, so that at the limit it is this small.
    small = SURE_BY * math.sqrt(LOST)
    wide = min(widths(len(values), LAST), key=lambda width: fmean(values[-width:]) + small * error(width))
    now = fmean(values[-wide:])
    left, largest = bottom + LOST * (best - bottom), max(abs(best), abs(bottom))
    if best - bottom < max(WORTH, LEAST_FALL * largest) or now + small * error(wide) > left:
        return []
    confidence: Confidence = "sure" if now <= bottom + LOST / 4 * (best - bottom) else "likely"
    below_zero = bottom < -LOST * best
    if below_zero:
        confidence = "likely" if best - now >= FALL * max(1.0, largest) else "possible"
    return [
        Finding(
            kind="reward lost",
            step=onset(reward, lambda value: value <= left, wide),
            evidence=f"reward fell from a best level of {decimals(best)} to {decimals(now)}"
            f"{', the bottom of this log' if below_zero else ''}",
            confidence=confidence,
            advice="go back to a checkpoint from before this step; look at its KL, gradient norm and completions",
        )
    ]


def _within(values: Sequence[float]) -> list[float]:
    """Return the values with those far outside the middle nine tenths pulled in: one step is no level."""
    ordered, cut = sorted(values), len(values) // 20
    low, high = ordered[cut], ordered[-1 - cut]
    return [max(low - 3 * (high - low), min(high + 3 * (high - low), value)) for value in values]


def _best(values: Sequence[float], error: StandardError) -> float:
    """Return the highest level anywhere in the log that noise does not explain."""
    found = []
    for width in widths(len(values), FIRST):
        sums = [0.0, *accumulate(values)]
        highest = max(sums[at + width] - sums[at] for at in range(len(values) - width + 1)) / width
        found.append(highest - LOST_BY * error(width))
    return max(found)


def flat(log: Log) -> list[Finding]:
    """Find a reward that is the same number in every step, or that does not rise in a long log."""
    reward = finite(log.get("reward"))
    if len(reward) < CONSTANT[-1][0] or is_solved(log) or log.get("teacher_kl"):
        return []
    values = [value for _, value in reward]
    if min(values) == max(values):
        confidence = next(how for steps, how in CONSTANT if len(values) >= steps)
        evidence = f"reward is {decimals(values[0])} in each of the {len(values)} logged steps"
        advice = "look at what the reward function returns for right and for wrong completions, and at its logging"
    elif len(values) >= LONG and abs(risen(reward)) < 2:
        wide = window(len(values))
        confidence = "possible"
        evidence = (
            f"reward is at {decimals(fmean(values[:wide]))} in the first {wide} logged steps and at "
            f"{decimals(fmean(values[-wide:]))} in the last {wide}; its noise explains the difference"
        )
        advice = "a run this long shows nothing learned: look at the learning rate, at dead groups and at the data"
    else:
        return []
    return [Finding(kind="reward does not move", step=None, evidence=evidence, confidence=confidence, advice=advice)]


def drifting_apart(log: Log) -> list[Finding]:
    """Find an evaluation that gets worse while the reward rises."""
    score, reward = finite(log.get("evaluation")), finite(log.get("reward"))
    if len(score) < FEWEST_EVALUATIONS or len(reward) < FEWEST_EVALUATIONS or risen(reward) < MOVES:
        return []
    scores = [value for _, value in score]
    third = max(1, len(scores) // 3)
    best = max(fmean(scores[at : at + third]) for at in range(len(scores) - third + 1))
    now = fmean(scores[-third:])
    peak = next(at for at in range(len(scores)) if fmean(scores[at : at + third]) == best)
    since = scores[peak:]
    confidence = next((how for limit, how in DRIFTS if _kendall(since) <= -limit), None)
    if confidence is None or best - now < WORSE * max(abs(best), abs(now)):
        return []
    return [
        Finding(
            kind="reward and evaluation drift apart",
            step=score[peak][0],
            evidence=f"`{log.keys.get('evaluation', 'evaluation')}` fell from {decimals(best)} to {decimals(now)} "
            f"while `{log.keys.get('reward', 'reward')}` went from {decimals(start(reward))} to "
            f"{decimals(end(reward))}",
            confidence=confidence,
            advice="the policy learns what the reward pays and the evaluation does not: read completions with a high "
            "reward, add a KL penalty, mend the reward; keep the checkpoint with the best evaluation",
        )
    ]


def _kendall(values: Sequence[float]) -> float:
    """Return Kendall's rank statistic of the values against time, in its standard deviations under no trend."""
    count = len(values)
    if count < 4:
        return 0.0
    signs = sum(
        (values[later] > values[at]) - (values[later] < values[at])
        for at in range(count)
        for later in range(at + 1, count)
    )
    return signs / math.sqrt(count * (count - 1) * (2 * count + 5) / 18)


def solved(log: Log) -> list[Finding]:
    """Report as a fact that the task is solved; low entropy and dead groups are then no faults."""
    if not is_solved(log):
        return []
    reward, entropy = finite(log.get("reward")), finite(log.get("entropy"))
    dead = finite(log.get("dead_groups"))
    parts = [f"reward is at {decimals(end(reward))}"]
    if dead:
        parts.append(f"{percent(end(dead))} of the groups have equal rewards")
    if entropy:
        parts.append(f"entropy went from {decimals(start(entropy))} to {decimals(end(entropy))}")
    level = end(reward)
    return [
        Finding(
            kind="solved task",
            step=onset(reward, lambda value: value >= SOLVED * level),
            evidence=", ".join(parts),
            confidence=capped("sure", len(reward)),
            advice="no fault: there is little left to learn here; stop, or go on with harder problems",
            serious=False,
        )
    ]
