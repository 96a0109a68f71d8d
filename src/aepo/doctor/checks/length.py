"""Checks of the length of completions: cut at the limit, collapsing, growing, always the same."""

from __future__ import annotations

from aepo.doctor.checks.base import decimals, end, finite, onset, percent, start
from aepo.doctor.checks.noise import FEW, ROWS, Limits, changed, level_above, risen
from aepo.doctor.types import Confidence, Finding, Log, LogSeries

# Shares of cut completions.
CUT: Limits = ((0.3, "sure"), (0.15, "likely"), (0.08, "possible"))
# Above this share nearly every completion ends at the limit.
PINNED = 0.9
# Shares of the length at the start, and multiples of it.
SHORTER: Limits = ((0.1, "sure"), (0.25, "likely"), (0.5, "possible"))
LONGER: Limits = ((4.0, "likely"), (2.0, "possible"))
# Tokens. A start below SHORT cannot collapse by much; up to NOTHING tokens there is no answer with reasons.
SHORT, NOTHING = 16, 10
# A reward that rises by so many standard errors says that the new length is no fault.
BETTER = 3.0


def truncation(log: Log) -> list[Finding]:
    """Find a run in which many completions are cut at the length limit."""
    series = finite(log.get("truncated"))
    found = level_above(series, CUT)
    if found is None or log.get("teacher_kl"):
        return []
    confidence, share, width = found
    length = finite(log.get("length"))
    lengths = f"; mean length went from {start(length):.0f} to {end(length):.0f}" if length else ""
    pinned = ": nearly every completion has the length of the limit" if share >= PINNED else ""
    at_end = f"{percent(share)} of the completions are cut at the limit"
    evidence = f"{at_end} at the end, {percent(start(series))} at the start{pinned}{lengths}"
    if len(series) < ROWS:
        evidence = f"{at_end} in the {_rows(len(series))} of this log{pinned}{lengths}"
    return [
        Finding(
            kind="truncation",
            step=onset(series, lambda share: share >= CUT[-1][0], width),
            evidence=evidence,
            confidence=confidence,
            advice="raise the limit, or mask cut completions out of the loss, or penalise length softly; "
            "a cut completion is mostly graded wrong, whatever it says before the cut",
        )
    ]


def _rows(count: int) -> str:
    return "only row" if count == 1 else f"{count} rows"


def length(log: Log) -> list[Finding]:
    """Find completions that collapse to a few tokens, grow to a multiple, or all have the length of the limit."""
    series = finite(log.get("length"))
    if len(series) < ROWS or start(series) <= 0:
        return []
    return _pinned(log, series) or _shorter(log, series) or _longer(log, series)


def _shorter(log: Log, series: LogSeries) -> list[Finding]:
    change = changed(series, SHORTER, falls=True)
    if change is None or change.before < SHORT:
        return []
    confidence = change.confidence
    if change.after <= NOTHING and confidence == "likely":
        confidence = "sure"
    if change.after > NOTHING and _better(log):
        confidence = "possible"
    return [
        Finding(
            kind="length collapse",
            step=onset(series, lambda value: value < SHORTER[-1][0] * change.before, change.width),
            evidence=f"mean length fell from {change.before:.0f} to {decimals(change.after)} tokens "
            f"({change.after / change.before:.0%} of its start){_reward(log)}",
            confidence=confidence,
            advice="read completions: a policy that stops at once has found that the reward or the penalty pays for "
            "it; look at length penalties, at the end-of-sequence token and at what an empty answer earns",
        )
    ]


def _longer(log: Log, series: LogSeries) -> list[Finding]:
    change = changed(series, LONGER, falls=False)
    if change is None:
        return []
    confidence: Confidence = "possible" if _better(log) else change.confidence
    return [
        Finding(
            kind="length growing",
            step=onset(series, lambda value: value > LONGER[-1][0] * change.before, change.width),
            evidence=f"mean length rose from {decimals(change.before)} to {decimals(change.after)} tokens "
            f"({change.after / change.before:.1f} times its start){_reward(log)}",
            confidence=confidence,
            advice="no fault while the reward rises and few completions are cut; else read completions for repetition, "
            "and look at the loss's mean over tokens or sequences, at the end token and at a soft length penalty",
        )
    ]


def _pinned(log: Log, series: LogSeries) -> list[Finding]:
    """Find, where the log does not say how many are cut, a mean length that equals the longest or never changes."""
    if log.get("truncated") or len(series) < FEW:
        return []
    last = series[-max(FEW, len(series) // 3) :]
    longest = dict(finite(log.get("length_max")))
    same = len({value for _, value in last}) == 1
    at_longest = bool(longest) and all(value >= longest.get(step, float("inf")) for step, value in last)
    top = max(value for _, value in series)
    if not (same or at_longest) or last[-1][1] < top or top < SHORT:
        return []
    teacher = bool(log.get("teacher_kl"))
    return [
        Finding(
            kind="length at the limit",
            step=onset(series, lambda value: value >= top),
            evidence=f"mean length is {top:g} tokens in each of the last {len(last)} logged steps, and never more: "
            "all completions seem to end at the limit",
            confidence="likely",
            advice="no fault in distillation, where each token is judged by itself"
            if teacher
            else "raise the limit, look whether the end token is trained and recognised; a cut completion is mostly "
            "graded wrong",
            serious=not teacher,
        )
    ]


def _better(log: Log) -> bool:
    reward = finite(log.get("reward"))
    return bool(reward) and risen(reward) >= BETTER


def _reward(log: Log) -> str:
    reward = finite(log.get("reward"))
    return f"; reward went from {decimals(start(reward))} to {decimals(end(reward))}" if reward else ""
