"""Before a run: a sentence for each thing that would make the chosen method do nothing, or go wrong, in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from aepo.config import Config
from aepo.control import RPO
from aepo.control.base import Control, moments
from aepo.control.schedules import Target
from aepo.engines.capabilities import LOOP, Engine
from aepo.loss.advantages import PassAtK
from aepo.loss.surrogates import Clip
from aepo.methods import control_of

# More of all groups than this without any gradient at an accuracy of one half is worth a sentence.
DEAD_SHARE = 0.1
# A target under or over these multiples of the base model's entropy is hardly meant: docs/results.md holds 0.15-0.6.
PLAUSIBLE = (0.02, 1.5)
# How many of the first problems are asked for a reference solution.
ASKED = 32
# A step by which every schedule that settles has settled.
FOREVER = 10**9


def preflight(config: Config, engine: Engine = LOOP) -> list[str]:
    """What the settings alone say; an empty list is good."""
    return [
        *engine.lacks(config.algorithm),
        *_ratio_is_one(config),
        *_cut_distributions(config),
        *_small_groups(config),
        *_unfinished_schedules(config),
        *_no_solutions(config),
    ]


def implausible_targets(config: Config, entropy: float) -> list[str]:
    """What the base model's measured entropy (nats per token) says about the targets."""
    low, high = (share * entropy for share in PLAUSIBLE)
    sentences = []
    for name, target in targets(config.control):
        values = [target.at(step, entropy) for step in range(config.steps)]
        outside = [value for value in values if not low <= value <= high]
        if outside:
            sentences.append(
                f"{name} asks for {outside[0]:.3g} nats, but the base model's entropy is {entropy:.3g}: "
                f"between {low:.2g} and {high:.2g} is plausible"
            )
    return sentences


def targets(control: Control, path: str = "control") -> Iterator[tuple[str, Target]]:
    """The entropy targets among a control's settings, by their dotted names."""
    for field in dataclasses.fields(control):  # type: ignore[arg-type]
        value: Any = getattr(control, field.name)
        if isinstance(value, Target):
            yield f"{path}.{field.name}", value
        elif isinstance(value, Control):
            yield from targets(value, f"{path}.{field.name}")


def _ratio_is_one(config: Config) -> list[str]:
    if config.optimizer.minibatches * config.optimizer.epochs > 1:
        return []
    idle = []
    if isinstance(config.surrogate, Clip) and (config.surrogate.high != config.surrogate.low or config.surrogate.dual):
        idle.append("the clip bounds")
    if config.control.acts_off_policy or "bounds" in moments(config.control):
        idle.append(f"the control {config.control.name}")
    return [
        f"there is one update per rollout (optimizer.minibatches x optimizer.epochs = 1), so the ratio is always 1 "
        f"and {what} never act{'s' if what.startswith('the control') else ''}"
        for what in idle
    ]


def _cut_distributions(config: Config) -> list[str]:
    top_p = config.sampling.top_p
    if top_p == 1:
        return []
    sentences = [f"sampling.top_p = {top_p:g} cuts the tail that the entropy sensor is to see visited"]
    if {"plan", "follow_up", "token_temperature"} & set(moments(config.control)):
        sentences.append(
            f"sampling.top_p = {top_p:g} together with a temperature other than 1 ({config.control.name}): the samples "
            "do not come from softmax(logits / T), and a high T is undone by the cut"
        )
    return sentences


def _small_groups(config: Config) -> list[str]:
    size, advantage = config.sampling.group_size, config.advantage
    sentences = []
    if 2 * 0.5**size > DEAD_SHARE:
        sentences.append(
            f"sampling.group_size = {size}: even at an accuracy of one half {2 * 0.5**size:.0%} of the groups are all "
            "right or all wrong and give no gradient"
        )
    if isinstance(advantage, PassAtK) and advantage.k == size:
        sentences.append(f"advantage.k = sampling.group_size = {size}: one right answer settles it, so nothing trains")
    return sentences


def _unfinished_schedules(config: Config) -> list[str]:
    """A ramp that ends with the run is finished: its last step may miss the end by one step's share."""
    return [
        f"{name} = {target} still changes after the run's last step ({config.steps} steps)"
        for name, target in targets(config.control)
        if target.spec.startswith(("linear", "cosine", "piecewise"))
        and target.at(config.steps, 1.0) != target.at(FOREVER, 1.0)
    ]


def _no_solutions(config: Config) -> list[str]:
    if control_of(config.control, RPO) is None:
        return []
    problems = (config.task.train_problem(config.seed, index) for index in range(ASKED))
    if any(config.task.solution(problem.data) is not None for problem in problems):
        return []
    return [f"none of the first {ASKED} problems has a reference solution, so rpo adds nothing"]
