"""Before a run, on every engine: a sentence for each thing that would make the chosen method do nothing in silence.

An engine fills a `Setup`, in its own names of the settings, and shows the sentences of `preflight`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from aepo.algorithm import Algorithm
from aepo.control.base import Control, hooks
from aepo.control.schedules import Target
from aepo.engines.capabilities import Engine
from aepo.loss.advantages import PassAtK
from aepo.loss.surrogates import Clip

# A larger share of groups without any gradient, at an accuracy of one half, is worth a sentence.
DEAD_SHARE = 0.1
# A target outside these multiples of the base model's entropy is hardly meant: docs/results.md holds 0.15 to 0.6.
PLAUSIBLE = (0.02, 1.5)
# A step by which every schedule that settles has settled.
FOREVER = 10**9


@dataclass(frozen=True, kw_only=True)
class Setup:
    """`Setup` says what an engine is about to run, in the terms that all engines share."""

    engine: Engine
    algorithm: Algorithm
    group_size: int
    """Completions of each prompt."""
    updates_per_rollout: int
    """Optimizer updates for each round of sampling."""
    steps: int | None = None
    """Rounds of sampling in the run; None if the engine does not know them yet."""
    cuts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The settings, by name, that cut the distribution of the ordinary completions, such as a top-p below 1."""
    solutions: bool = True
    """Whether the data has reference solutions."""
    group_size_name: str = "sampling.group_size"
    updates_name: str = "optimizer.minibatches x optimizer.epochs"


def preflight(setup: Setup) -> list[str]:
    """Return a sentence for each thing that will do nothing or go wrong; an empty list is good."""
    return [
        *setup.engine.lacks(setup.algorithm),
        *_ratio_is_one(setup),
        *_cut_distributions(setup),
        *_small_groups(setup),
        *_unfinished_schedules(setup),
        *_no_shuffle(setup),
        *_no_solutions(setup),
    ]


def implausible_targets(control: Control, steps: int, entropy: float) -> list[str]:
    """Return a sentence for each target that the base model's measured entropy (nats per token) makes implausible."""
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


def targets(control: Control, path: str = "control") -> Iterator[tuple[str, Target]]:
    """Yield the entropy targets among a control's settings, each with its dotted name."""
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
    if isinstance(surrogate, Clip) and (surrogate.high != surrogate.low or surrogate.dual):
        idle.append("the clip bounds never act")
    if control.idle_at_ratio_one:
        idle.append(f"the control {control.name} never acts")
    cause = f"there is one update per rollout ({setup.updates_name} = 1), so the ratio is always 1"
    return [f"{cause} and {what}" for what in idle]


def _cut_distributions(setup: Setup) -> list[str]:
    control = setup.algorithm.control
    tempers = {"plan", "follow_up", "token_temperature"} & set(hooks(control))
    sentences = []
    for name, value in setup.cuts.items():
        sentences.append(f"{name} = {value} cuts the tail that the entropy sensor is to see visited")
        if tempers:
            sentences.append(
                f"{name} = {value} together with a temperature other than 1 ({control.name}): the samples do not come "
                "from softmax(logits / T), and the cut undoes a high T"
            )
    return sentences


def _small_groups(setup: Setup) -> list[str]:
    size, advantage, name = setup.group_size, setup.algorithm.advantage, setup.group_size_name
    sentences = []
    if 2 * 0.5**size > DEAD_SHARE:
        sentences.append(
            f"{name} = {size}: even at an accuracy of one half {2 * 0.5**size:.0%} of the groups are all "
            "right or all wrong and give no gradient"
        )
    if isinstance(advantage, PassAtK) and advantage.k == size:
        sentences.append(f"advantage.k = {name} = {size}: one right answer settles it, so nothing trains")
    return sentences


def _unfinished_schedules(setup: Setup) -> list[str]:
    """A ramp that ends with the run is finished: its last step may miss the end by one step's share."""
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
