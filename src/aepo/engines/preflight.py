"""`preflight` finds, before a run, the settings with which the chosen method would silently do nothing.

Every engine fills a `Setup` with its own names of the settings and shows the sentences that `preflight` returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aepo.algorithm import Algorithm
from aepo.control.base import Control, Step, hooks
from aepo.control.schedules import Target
from aepo.engines.capabilities import Engine
from aepo.errors import InvalidValue
from aepo.loss.advantages import PassAtK
from aepo.loss.surrogates import GSPO, Clip

# `preflight` warns if, at an accuracy of one half, a larger share of the groups gives no gradient.
DEAD_SHARE = 0.1
# A target outside these multiples of the base model's entropy is implausible: docs/results.md holds 0.15 to 0.6.
PLAUSIBLE = (0.02, 1.5)
# A step number so large that every schedule with an end has reached it.
FOREVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Setup:
    """`Setup` says what an engine is about to run, in the terms that all engines share."""

    engine: Engine
    """The engine, with what it offers."""
    algorithm: Algorithm
    """The algorithm that the engine runs."""
    group_size: int
    """Number of ordinary completions of each prompt."""
    updates_per_rollout: int
    """Number of optimizer updates for each round of sampling."""
    steps: int | None = None
    """Number of rounds of sampling in the run; None if the engine does not know it yet."""
    cuts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings, by name, that cut or temper the distribution of the ordinary completions, such as top-p < 1."""
    solutions: bool = True
    """Whether one of the first problems has a reference solution; true if the control needs none."""
    group_size_name: str = "sampling.group_size"
    """The engine's name of the setting `group_size`."""
    updates_name: str = "optimizer.minibatches x optimizer.epochs"
    """The engine's names of the settings that give `updates_per_rollout`."""


def preflight(setup: Setup) -> list[str]:
    """Return a sentence for each setting that will have no effect or go wrong; the list is empty if there is none."""
    return [
        *setup.engine.lacks(setup.algorithm),
        *_ratio_is_one(setup),
        *_clipped_positives(setup),
        *_cut_distributions(setup),
        *_small_groups(setup),
        *_replaced_advantages(setup),
        *_unfinished_schedules(setup),
        *_no_shuffle(setup),
        *_no_solutions(setup),
    ]


def implausible_targets(control: Control, steps: int, entropy: float) -> list[str]:
    """Return a sentence for each target that is implausible beside the base model's entropy.

    Args:
        control: The control whose targets are checked.
        steps: Number of steps in the run.
        entropy: The measured entropy of the base model, nats per token.
    """
    low, high = (share * entropy for share in PLAUSIBLE)
    sentences = []
    for name, target in targets(control):
        values = [target.at(step, entropy) for step in range(steps)]
        outside = [value for value in values if not low <= value <= high]
        if outside:
            sentences.append(
                f"{name} asks for {outside[0]:.3g} nats, but the base model's entropy is {entropy:.3g}: "
                f"between {low:.2g} and {high:.2g} is plausible"
            )
    return sentences


@dataclass(frozen=True)
class Seen:
    """`Seen` holds the rewards of some completions before training."""

    rewards: Sequence[float]
    """The rewards of the completions that have one."""
    right: int
    """How many of them count as right."""
    rule: str
    """What counts as right, in words."""
    completions: int
    """The number of all completions."""
    failures: Sequence[str] = ()
    """The reason of each verdict that failed."""


def unusable_rewards(algorithm: Algorithm, seen: Seen) -> list[str]:
    """Return a sentence for each problem that the rewards of some completions before training show.

    Args:
        algorithm: The algorithm of the run.
        seen: The rewards.

    Raises:
        InvalidValue: No completion got a reward.
    """
    if not seen.rewards:
        reason = seen.failures[0] if seen.failures else "the reward function gave no score"
        got = f"none for any of {seen.completions} completions before training: {reason}"
        raise InvalidValue("reward", got, "a finite number for some completions")
    least, most = min(seen.rewards), max(seen.rewards)
    sentences = []
    if seen.failures:
        sentences.append(f"the reward failed for {len(seen.failures)} of {seen.completions}, first: {seen.failures[0]}")
    if least == most:
        sentences.append(
            f"the reward is {least:g} for every one of {len(seen.rewards)} completions: nothing is learned until "
            "rewards differ"
        )
    elif not 0 <= least <= most <= 1:
        sentences.append(
            f"the rewards lie between {least:g} and {most:g}, and {seen.right} of {len(seen.rewards)} completions "
            f"count as right ({seen.rule}): task.right sets another rule"
        )
    if seen.right == 0 and algorithm.control.needs_right:
        sentences.append(
            f"no completion of {len(seen.rewards)} is right ({seen.rule}): the control {algorithm.control.name} has "
            "no positives until one is"
        )
    return sentences


def targets(control: Control, path: str = "control") -> Iterator[tuple[str, Target]]:
    """Yield the dotted name and the value of each entropy target among the settings of a control.

    Args:
        control: The control; the controls inside it are searched too.
        path: The dotted name of the control.
    """
    for field in dataclasses.fields(control):  # type: ignore[arg-type]
        value: Any = getattr(control, field.name)
        if isinstance(value, Target):
            yield f"{path}.{field.name}", value
        elif isinstance(value, Control):
            yield from targets(value, f"{path}.{field.name}")


def _ratio_is_one(setup: Setup) -> list[str]:
    if setup.updates_per_rollout > 1:
        return []
    surrogate, control = setup.algorithm.surrogate, setup.algorithm.control
    idle = []
    if surrogate.acts_off_policy:
        plain = f"the surrogate {surrogate.name} acts as a plain policy gradient"
        idle.append("the clip bounds never act" if isinstance(surrogate, Clip) else plain)
    if control.idle_at_ratio_one:
        idle.append(f"the control {control.name} never acts")
    cause = f"there is one update per rollout ({setup.updates_name} = 1), so the ratio is always 1"
    return [f"{cause} and {what}" for what in idle]


def _clipped_positives(setup: Setup) -> list[str]:
    """Return a sentence if a clip of whole rows would leave out most tempered rows after the first update."""
    control = setup.algorithm.control
    if setup.updates_per_rollout == 1 or control.reinforces_extra or not isinstance(setup.algorithm.surrogate, GSPO):
        return []
    step = Step(number=1, steps=2, prompts=8, group_size=setup.group_size, max_tokens=1, seed=0)
    if not any(control.plan(control.state_at(command), step) for command in (1.0, -1.0)):
        return []
    return [
        f"the surrogate {GSPO.name} clips whole rows, so from the second update of a rollout on most positives of "
        f"{control.name} are left out and the target may be missed: control.positive_loss = reinforce trains on all"
    ]


def _cut_distributions(setup: Setup) -> list[str]:
    control = setup.algorithm.control
    tempers = {"plan", "follow_up", "token_temperature"} & set(hooks(control))
    if not setup.cuts:
        return []
    given = " and ".join(f"{name} = {value}" for name, value in setup.cuts.items())
    several = len(setup.cuts) > 1
    sentences = [
        f"{given} {'cut or temper' if several else 'cuts or tempers'} what ordinary completions are drawn from, while "
        "the entropy sensor, the ratio and the old log-probabilities stay those of the whole distribution at T = 1: "
        "the sensor sees only the contexts that are visited this way, and the update does not correct for it"
    ]
    if tempers:
        sentences.append(
            f"{given} together with a temperature other than 1 ({control.name}): the control takes its own samples "
            "for draws of softmax(logits / T) beside draws at T = 1, and a cut undoes a high T"
        )
    return sentences


def _small_groups(setup: Setup) -> list[str]:
    size, advantage, name = setup.group_size, setup.algorithm.advantage, setup.group_size_name
    sentences = []
    if setup.algorithm.control.compares_groups and 2 * 0.5**size > DEAD_SHARE:
        sentences.append(
            f"{name} = {size}: even at an accuracy of one half {2 * 0.5**size:.0%} of the groups are all "
            "right or all wrong and give no gradient"
        )
    if isinstance(advantage, PassAtK) and advantage.k == size:
        sentences.append(f"advantage.k = {name} = {size}: one right answer settles it, so nothing trains")
    return sentences


def _replaced_advantages(setup: Setup) -> list[str]:
    control, advantage = setup.algorithm.control, setup.algorithm.advantage
    if control.compares_groups or advantage == Algorithm().advantage:
        return []
    return [f"the control {control.name} replaces the advantages, so advantage = {advantage.name} has no effect"]


def _unfinished_schedules(setup: Setup) -> list[str]:
    """Return a sentence for each target that has not reached its end after the last step.

    A ramp over as many steps as the run has counts as finished: the last step of the run lacks one step of the ramp.
    """
    steps = setup.steps
    if steps is None:
        return []
    return [
        f"{name} = {target} still changes after the run's last step ({steps} steps)"
        for name, target in targets(setup.algorithm.control)
        if target.spec.startswith(("linear", "cosine", "piecewise"))
        and target.at(steps, 1.0) != target.at(FOREVER, 1.0)
    ]


def _no_shuffle(setup: Setup) -> list[str]:
    control = setup.algorithm.control
    if control.shuffle or not setup.engine.shuffles:
        return []
    return [f"the engine {setup.engine.name} shuffles the rows of a step, which {control.name} would leave in place"]


def _no_solutions(setup: Setup) -> list[str]:
    control = setup.algorithm.control
    if setup.solutions or not control.needs(control.initial_state()).solutions:
        return []
    return [f"none of the first problems has a reference solution, so {control.name} adds nothing"]
