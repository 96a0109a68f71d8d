"""Checks of the learning signal: dead groups, methods without effect, targets that are missed."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from aepo.doctor.checks.base import decimals, end, finite, onset, percent, start
from aepo.doctor.checks.noise import Limits, capped, level_above
from aepo.doctor.checks.reward import is_solved
from aepo.doctor.types import Finding, Log

# Shares, as levels at the end.
DEAD: Limits = ((0.5, "sure"), (0.42, "likely"), (0.35, "possible"))
FEWEST = 3
# A third of the run has at least FEWEST_FOR_TARGET steps, and SURE_OF_TARGET for a sure finding. MISSED is in nats. A
# gap closes if the mean of its second half is below CLOSING times the mean of its first half.
FEWEST_FOR_TARGET, SURE_OF_TARGET, MISSED, CLOSING = 10, 30, 0.1, 0.8
# The mean of a ratio that never moved differs from 1 by rounding only, and its KL from 0.
STILL = 1e-6
AT_REST = {"approximate_kl": 0.0, "ratio": 1.0, "clip_fraction": 0.0, "clip_fraction_low": 0.0}
# Controls whose effect is zero while the ratio is 1 (`acts_off_policy` in aepo.control, which needs torch).
OFF_POLICY_CONTROLS = frozenset({"kl-cov", "archer", "hapo", "moving-bound", "bapo", "erc"})


def dead_groups(log: Log) -> list[Finding]:
    """Find a run in which most groups have equal rewards, so that they give no gradient."""
    series, what = finite(log.get("dead_groups")), "of the groups have equal rewards throughout"
    if not series:
        series, what = finite(log.get("no_advantage")), "of the steps have no advantage other than 0 in the whole batch"
    found = level_above(series, DEAD)
    if found is None or len(series) < FEWEST or is_solved(log) or log.get("teacher_kl"):
        return []
    confidence, dead, width = found
    harmless = _all_right(log, dead) >= dead / 2
    return [
        Finding(
            kind="dead groups",
            step=onset(series, lambda share: share >= DEAD[-1][0], width),
            evidence=f"{percent(dead)} {what} at the end, {percent(start(series))} at the start{_which(log)}",
            confidence=confidence,
            advice="most of them are solved: harder problems, or dynamic sampling, which draws until groups differ"
            if harmless
            else "larger groups, problems that are neither solved nor hopeless, dynamic sampling (it draws until "
            "groups differ); where all rewards are 0, look at the verifier first",
            serious=not harmless,
        )
    ]


def _all_right(log: Log, dead: float) -> float:
    """Return a lower bound on the share of groups whose completions are all right.

    With rewards from 0 to 1, at most 1 - mean reward of the groups are all wrong.
    """
    if good := finite(log.get("groups_all_good")):
        return end(good)
    reward = finite(log.get("reward"))
    if not reward or any(not 0 <= value <= 1 for _, value in reward):
        return 0.0
    return dead - (1 - end(reward))


def _which(log: Log) -> str:
    good, bad = finite(log.get("groups_all_good")), finite(log.get("groups_all_bad"))
    if good and bad:
        return f" (all right: {percent(end(good))}, all wrong: {percent(end(bad))})"
    reward = finite(log.get("reward"))
    return f" (mean reward {decimals(end(reward))})" if reward else ""


def idle(log: Log) -> list[Finding]:
    """Find a run that trains nothing (gradient or learning rate 0), and say if the ratio never differs from 1."""
    return _frozen(log) or _ratio_is_one(log)


def _frozen(log: Log) -> list[Finding]:
    for name, what in (("learning_rate", "the learning rate"), ("gradient_norm", "the norm of the gradient")):
        series = finite(log.get(name))
        if len(series) >= FEWEST and all(value == 0 for _, value in series[-max(FEWEST, len(series) // 3) :]):
            return [
                Finding(
                    kind="nothing is trained",
                    step=onset(series, lambda value: value == 0),
                    evidence=f"{what} is 0 in each of the last {max(FEWEST, len(series) // 3)} logged steps",
                    confidence=capped("sure", len(series)),
                    advice="look at the schedule, at frozen parameters, and at whether any advantage differs from 0",
                )
            ]
    return []


def _ratio_is_one(log: Log) -> list[Finding]:
    logged = {name: series for name in AT_REST if len(series := finite(log.get(name))) >= FEWEST}
    if not logged or any(abs(value - AT_REST[name]) > STILL for name in logged for _, value in logged[name]):
        return []
    evidence = " and ".join(
        f"`{log.keys.get(name, name)}` is {AT_REST[name]:g} in all {len(series)} steps"
        for name, series in logged.items()
    )
    control = _off_policy_control(log.settings)
    if control:
        return [
            Finding(
                kind="a method that does nothing",
                step=None,
                evidence=f"{evidence}: one update per rollout, so the control {control} does nothing",
                confidence="sure",
                advice="more than one minibatch or epoch per rollout: this control needs a ratio that moves",
            )
        ]
    clips = all(name.startswith("clip") for name in logged)
    return [
        Finding(
            kind="on-policy",
            step=None,
            evidence=f"{evidence}: {'nothing is ever clipped' if clips else 'one update per rollout'}",
            confidence="sure" if not clips else "likely",
            advice="no fault; clip bounds, KL-Cov and whatever else acts on the ratio change nothing in such a run",
            serious=False,
        )
    ]


def _off_policy_control(settings: Any) -> str | None:
    """Return the name of the control in the settings that needs a ratio other than 1, also inside joined controls."""
    if not isinstance(settings, dict):
        return None
    control = settings.get("control", settings)
    if not isinstance(control, dict):
        return None
    if control.get("name") in OFF_POLICY_CONTROLS:
        return str(control["name"])
    inner = (value for value in control.values() if isinstance(value, dict) and "name" in value)
    return next((name for value in inner if (name := _off_policy_control({"control": value}))), None)


def beyond_authority(log: Log) -> list[Finding]:
    """Find a closed loop whose command is at its limit while the error does not shrink."""
    alarms = [step for step, value in log.get("alarm") if value == 1]
    saturated = finite(log.get("saturated"))
    if not alarms:
        return []
    return [
        Finding(
            kind="target out of reach",
            step=alarms[0],
            evidence=f"{len(alarms)} alarms, the command at its limit in {percent(end(saturated))} of the last steps"
            if saturated
            else f"{len(alarms)} alarms",
            confidence="sure",
            advice="a target nearer to the entropy that the run has, or a control with more authority (docs/theory.md)",
        )
    ]


def target_missed(log: Log) -> list[Finding]:
    """Find an entropy that stays on one side of its target over the last third of the run and does not come nearer."""
    target = dict(finite(log.get("target_entropy")))
    entropy = [(step, value) for step, value in finite(log.get("entropy")) if step in target]
    gaps = [value - target[step] for step, value in entropy]
    third = len(gaps) // 3
    if third < FEWEST_FOR_TARGET or any(value == 1 for _, value in log.get("alarm")):
        return []
    last, on_target = gaps[-third:], _resting([target[step] for step, _ in entropy])
    since = gaps[-min(2 * third, on_target) :]
    if len(since) < max(third, 2 * FEWEST_FOR_TARGET):
        return []
    one_side = len({gap > 0 for gap in last}) == 1
    if not one_side or abs(fmean(last)) <= MISSED or _closes(since) or _closes(last):
        return []
    gap = f"{decimals(abs(fmean(last)))} nats {'above' if last[-1] > 0 else 'below'} its target"
    return [
        Finding(
            kind="target missed",
            step=entropy[-third][0],
            evidence=f"entropy is {gap} over the last {third} steps and does not come nearer{_command(log)}",
            confidence="sure" if third >= SURE_OF_TARGET else "likely",
            advice="a control with more authority (its gain, its limit, heavier or hotter extra samples), or a target "
            "nearer to what the run has",
        )
    ]


def _resting(target: Sequence[float]) -> int:
    """Return for how many last steps the target moves by at most `MISSED` in any `FEWEST_FOR_TARGET` steps."""
    last = len(target) - 1
    moved = (abs(target[min(at + FEWEST_FOR_TARGET, last)] - target[at]) > MISSED for at in range(last, -1, -1))
    return next((steps for steps, moves in enumerate(moved) if moves), len(target))


def _closes(gaps: Sequence[float]) -> bool:
    """Return whether the gap keeps its sign and is smaller in the second half than in the first."""
    before, after = fmean(gaps[: len(gaps) // 2]), fmean(gaps[len(gaps) // 2 :])
    return before * after > 0 and abs(after) < CLOSING * abs(before)


def _command(log: Log) -> str:
    """Return words for the control's command or coefficient at the end; empty if the log has neither."""
    for name in ("command", "coefficient"):
        acted = finite(log.get(name))
        if acted:
            return f"; the control's {name} is at {decimals(end(acted))}"
    return ""
