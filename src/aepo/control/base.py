"""This module defines the base class of entropy controls, `Control`, and what its methods are given.

A "hook" is a method of `Control` that the engine calls at a fixed point of each step. The default of every hook changes
nothing, and a control overrides the hooks that it needs. The hooks in the order of a step, in four groups:

    hook                 type                                               what it returns
    -------------------  -------------------------------------------------  ------------------------------------------
    sampling: which completions are drawn
      plan               (state, step) -> tuple[ExtraGroup, ...]            extra groups for the first sampling call
      token_temperature  (state) -> TokenTemperature | None                 a temperature for each ordinary token
      follow_up          (rollouts, state, step) -> FollowUp                what to draw next, given the first rewards
    the batch: once for all rows, without gradient
      reward             (rollouts, state, step) -> list[float]             the rewards that advantages come from
      mix                (ordinary, extra, state, step) -> list[Sample]     the rows to measure and to train on
      mark               (scored, state) -> Mapping[str, Tensor]            facts on each token for later hooks
      shape              (advantages, scored, state) -> Tensor              the advantages of the update
    every pass: for each microbatch of the update
      reshape            (advantages, scored, new, state) -> Tensor         advantages, given the current policy
      bounds             (scored, new, state) -> Bounds | None              clip bounds instead of the surrogate's
      penalty            (scored, new, state) -> Tensor | None              a term with gradient for the loss
    afterwards: when the update is done
      replay             (state, step) -> tuple[Sample, ...]                rows of earlier steps to train on again
      update             (state, measured) -> State                         the state of the next step

The types of the arguments are state: `State`, step: `Step`, rollouts: `Sequence[Rollout]`, ordinary and extra:
`Sequence[Sample]`, scored: `Scored`, new: `BatchStatistics`, measured: `Measured`. Advantages and every `Tensor` in the
table are [B, T], one value for each token.

A control is a frozen dataclass, and its fields are its settings. What it must remember from step to step is its state:
plain JSON data that goes into the hooks and comes out of `update`. The state is saved in every checkpoint. Every hook
is a pure function.
"""

from __future__ import annotations

import hashlib
import math
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from aepo.entropy.partial import Kept
from aepo.errors import require
from aepo.loss.surrogates import Bounds
from aepo.types import Batch, BatchStatistics, Metric, Rollout, Sample, TokenTemperature, asked_for

State = Mapping[str, Any]
"""What a control remembers from step to step: plain JSON data by name."""


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a random generator that depends on (seed, step, purpose) alone, so no checkpoint needs to save it."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Step:
    """`Step` tells a hook at which step of the run it is called, and how large the step is."""

    number: int
    """The number of the step, from 0."""
    steps: int
    """The number of steps of the run."""
    prompts: int
    """The number of prompts of the step, each with one ordinary group."""
    group_size: int
    """The number of completions of an ordinary group."""
    max_tokens: int
    """The length limit of a completion, tokens."""
    seed: int
    """The seed of the run."""
    temperature: float = 1.0
    """The temperature of ordinary completions."""

    def generator(self, purpose: str) -> torch.Generator:
        """Return the random generator for one purpose in this step. Each purpose has a generator of its own."""
        return generator(self.seed, self.number, purpose)


@dataclass(frozen=True)
class ExtraGroup:
    """`ExtraGroup` asks for more completions of a prompt that the step draws anyway."""

    prompt: int
    """The number of the prompt's ordinary group."""
    count: int
    """How many completions are drawn."""
    temperature: float
    """The temperature at which they are drawn."""


@dataclass(frozen=True)
class FollowUp:
    """`FollowUp` asks for a further round of sampling. It is false if there is nothing to draw."""

    extra: tuple[ExtraGroup, ...] = ()
    """Extra groups to draw."""
    prompts: int = 0
    """The number of new prompts, each of which gets an ordinary group."""

    def __bool__(self) -> bool:
        return bool(self.extra) or self.prompts > 0


@dataclass(frozen=True)
class Scored:
    """`Scored` is a batch with its statistics under the weights that sampled it. Nothing in it has a gradient.

    The statistics are at temperature 1, also for rows that were drawn at another temperature.
    """

    batch: Batch
    """The batch. Its advantages are those before `shape`; in the hooks of every pass, those after `shape`."""
    old: BatchStatistics
    """The statistics of its tokens under the policy that sampled them."""
    step: Step
    """The step that trains on the batch."""
    ref_logprobs: Tensor | None = None
    """[B, T], log pi_ref(y_t) of the frozen base model, nats; None unless `Needs.reference` asked for it."""
    marks: Mapping[str, Tensor] = field(default_factory=dict)
    """What the control's hook `mark` returned, each [B, T]."""
    correction: Tensor | None = None
    """[B, T], what the objective of each token is multiplied by because the sampler is not exactly the policy
    (`aepo.engines.mismatch`); None without a correction.
    """

    def select(self, rows: Tensor) -> Scored:
        """Return the same for these rows (an index, or a bool mask [B])."""
        return replace(
            self,
            batch=self.batch.select(rows),
            old=self.old.select(rows),
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[rows],
            marks={name: values[rows] for name, values in self.marks.items()},
            correction=None if self.correction is None else self.correction[rows],
        )

    @property
    def entropy(self) -> Tensor:
        """Return the exact entropies under the policy that sampled, nats, [B, T]. Every step measures them."""
        return asked_for(self.old.entropy)

    @property
    def trained(self) -> Tensor:
        """Return the mask of the tokens that are trained on, [B, T]."""
        return self.batch.mask * self.batch.trained[:, None]

    @property
    def ordinary(self) -> Tensor:
        """Return the mask of the ordinary rows' tokens, trained on or not, [B, T]. The exact sensor reads them."""
        return self.batch.mask * ~self.batch.extra[:, None]


@dataclass(frozen=True)
class Measured:
    """`Measured` holds what a step measured. The hook `update` receives it."""

    entropy: Metric
    """The sensor (docs/entropy.md): the exact entropy over all ordinary completions under the policy that sampled them,
    nats per token.
    """
    mixed_sampled_entropy: Metric
    """The authors' sensor: -log pi of the trained tokens, extra rows included, recorded while the weights move, in nats
    per token.
    """
    reward: Metric
    """The verifier's reward."""
    right: Metric
    """The share of ordinary completions that count as right."""
    extra: Sequence[Sample]
    """The extra completions that were drawn."""
    scored: Scored
    """The whole batch, with the advantages from before `shape`, for other kinds of sensors."""
    entropy_se: float = math.nan
    """The standard error of `entropy` by the draw of prompts and completions, nats per token; NaN for one prompt."""
    prompts: Mapping[int, str] = field(default_factory=dict)
    """The prompt's id of each ordinary group, by the number of the group."""

    @property
    def step(self) -> int:
        """Return the number of the step."""
        return self.scored.step.number


@dataclass(frozen=True)
class Needs:
    """`Needs` lists what a control asks of the engine in a step. What is not asked for costs nothing.

    Every step has the log-probabilities and the entropy under the policy that sampled; these need no asking.
    """

    temperatures: tuple[float, ...] = ()
    """Temperatures T at which log pi^T(y) of each token is measured: in `scored.old`, not in the update's passes."""
    entropy_gradient: bool = False
    """Whether the passes of the update compute the entropy, with gradient. If not, `new.entropy` is None there."""
    kept: Kept | None = None
    """The part of the vocabulary over which a second entropy is taken, which carries a gradient in `penalty`, and a
    second log-probability, which does not.
    """
    reference: bool = False
    """Whether the log-probabilities of the frozen base model are needed."""
    solutions: bool = False
    """Whether the prompts need reference solutions."""

    @property
    def in_update(self) -> Needs:
        """Return the needs that concern the forward passes of the update."""
        return Needs(entropy_gradient=self.entropy_gradient, kept=self.kept)

    def __or__(self, other: Needs) -> Needs:
        """Return all that the two ask for. If both keep a part of the vocabulary, the result has the first one's."""
        return Needs(
            temperatures=tuple(dict.fromkeys(self.temperatures + other.temperatures)),
            entropy_gradient=self.entropy_gradient or other.entropy_gradient,
            kept=self.kept or other.kept,
            reference=self.reference or other.reference,
            solutions=self.solutions or other.solutions,
        )


@dataclass(frozen=True)
class ControlReport:
    """`ControlReport` is what a control reports of a step; docs/metrics.md says how each number is made.

    A control keeps these names in its state. What the state does not hold stands at its default.
    """

    target_entropy: float | None = None
    """The target of this step, nats per token; None without a target."""
    error: float | None = None
    """Target minus measured entropy, nats per token; None without a target."""
    alarm: bool = False
    """Whether the control has been at its limit for long, and the error does not shrink."""
    command: float | None = None
    """The command that this step acted on, from -1 to 1; None without one."""
    saturated: float = 0.0
    """1.0 if that command was at its limit and the error asked for more."""
    coefficient: float | None = None
    """The coefficient that this step acted on; None without one."""
    entropy_estimate: float | None = None
    """The entropy that the self-tuning law believes in, nats per token; None under other laws."""
    entropy_estimate_se: float | None = None
    """The standard error of the reading that the law was given, nats per token."""
    drift: float | None = None
    """What the rest of an update does to the entropy, as the self-tuning law estimates it, nats per step."""
    authority_up: float | None = None
    """What the command 1 does to the entropy, as the self-tuning law estimates it, nats per step."""
    authority_down: float | None = None
    """What the command -1 takes from the entropy, as the self-tuning law estimates it, nats per step."""
    quantity: str | None = None
    """What is held, if it is another quantity than the entropy; `error` is then in its unit."""
    quantity_target: float | None = None
    """The target of that quantity at this step."""
    quantity_reading: float | None = None
    """What this step read of that quantity."""
    advice: str | None = None
    """With an alarm: what would give the control the authority that it lacks."""

    @classmethod
    def of(cls, before: State, after: State) -> ControlReport:
        """Return what the step measured, which is in the state `after`, and what it acted on, in the state `before`."""
        acted_on = ("command", "saturated", "coefficient")
        measured = [name for name in vars(cls()) if name not in acted_on]
        known = {name: after[name] for name in measured if name in after}
        return cls(**known, **{name: before[name] for name in acted_on if name in before})

    def __or__(self, other: ControlReport) -> ControlReport:
        """Return this report, with the other's values for what stands at its default here."""
        nothing = vars(ControlReport())
        return ControlReport(**{name: vars(other)[name] if v == nothing[name] else v for name, v in vars(self).items()})


class Control(ABC):
    """`Control` is the base class of entropy controls, which combine a sensor, a law and an actuator.

    A subclass overrides the hooks that it needs.
    """

    name: ClassVar[str]
    """The name in the settings and in the table of methods."""
    acts_off_policy: bool = False
    """Whether the control acts only where pi has moved away from the policy that sampled, that is, from the second
    update of a rollout on.
    """
    compares_groups: bool = True
    """Whether the rows' advantages come from a comparison within groups, so that a group of equal rewards gives no
    gradient.
    """
    shuffle: bool = True
    """Whether ordinary and extra rows are each spread at random over all minibatches. False keeps the rows in the order
    that `mix` returns.
    """
    lowers_rewards: bool = False
    """Whether the hook `reward` can return less than 0 for a reward of 0."""
    reinforces_extra: bool = False
    """Whether extra rows are trained on by REINFORCE, A * grad log pi, without the surrogate's ratio and clip."""
    per_prompt: int | None = None
    """Completions of each extra group; None for the step's group size."""
    prompts_per_round: int | None = None
    """New prompts of each further round of `follow_up`; None for as many as the step has."""

    @property
    def parts(self) -> tuple[Control, ...]:
        """Return the single controls that this one is made of."""
        return (self,)

    @property
    def adds_rows(self) -> bool:
        """Return whether a batch may hold more rows than the step has ordinary completions."""
        return False

    def in_place(self) -> Control:
        """Return the nearest control whose extra rows replace ordinary rows, or this control if it adds no rows."""
        return self

    @property
    def idle_at_ratio_one(self) -> bool:
        """Return whether the control does nothing while the ratio pi / pi_old is 1, as with one update per rollout."""
        return self.acts_off_policy or "bounds" in hooks(self)

    @property
    def needs_right(self) -> bool:
        """Return whether the control does nothing while no completion counts as right."""
        return False

    def initial_state(self) -> State:
        """Return the state before the first step."""
        return {}

    def state_at(self, command: float, extra_accuracy: float = 1.0) -> State:
        """Return a state from the middle of a run. Planning uses it to ask the control what it would do.

        Args:
            command: The command that the state holds, from -1 to 1. A control without a command ignores it.
            extra_accuracy: The share of the extra completions that are right.
        """
        state = self.initial_state()
        return {**state, "command": command} if "command" in state else state

    def needs(self, state: State) -> Needs:
        """Return what the later hooks of this step will read."""
        return Needs()

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """Return the extra groups to draw in the step's first sampling call."""
        return ()

    def token_temperature(self, state: State) -> TokenTemperature | None:
        """Return a function from the entropy of a token to its temperature, for ordinary completions; None for 1."""
        return None

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """Return what to draw in a further round, given all rollouts of the step so far.

        The engine calls it after each round, until there is nothing to draw.
        """
        return FollowUp()

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """Return the rewards that advantages are computed from. Logs and positives keep the verifier's rewards."""
        return [rollout.reward for rollout in rollouts]

    def mix(
        self,
        ordinary: Sequence[Sample],
        extra: Sequence[Sample],
        state: State,
        step: Step,
    ) -> list[Sample]:
        """Return the rows of the batch: every ordinary sample and the extra samples that are used.

        An ordinary sample that is not to be trained on gets trained=False.

        Args:
            ordinary: The ordinary samples.
            extra: The extra samples, each with its advantage within its own extra group.
            state: The state of this step.
            step: The step.
        """
        return [*ordinary, *extra]

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return facts on each token by name, each [B, T], over the whole batch. Later hooks read `scored.marks`."""
        return {}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the advantages of the update, [B, T], from those of the whole batch, [B, T]."""
        return advantages

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return the advantages of a microbatch, [B, T], given the statistics `new` of the current policy.

        Nothing here has a gradient.
        """
        return advantages

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds | None:
        """Return clip bounds for a microbatch that replace the surrogate's own; None to keep those.

        The statistics `new` are those of the current policy. Nothing here has a gradient.
        """
        return None

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return a term for each token, [B, T], that is added to the loss of a microbatch; None for no term.

        The statistics `new` are those of the current policy, with gradient.
        """
        return None

    def replay(self, state: State, step: Step) -> tuple[Sample, ...]:
        """Return rows of earlier steps to train on again after the update.

        The logprobs of their completions are those of the policy that sampled them, at T = 1.
        """
        return ()

    def update(self, state: State, measured: Measured) -> State:
        """Return the state of the next step."""
        return state

    def report(self, before: State, after: State) -> ControlReport:
        """Return what the log records of the control.

        Args:
            before: The state that the step acted on; the command and the coefficient come from it.
            after: The state of the next step; the measurement of this step comes from it.
        """
        return ControlReport.of(before, after)


HOOKS = (
    *("plan", "token_temperature", "follow_up", "reward", "mix", "mark", "shape"),
    *("reshape", "bounds", "penalty", "replay", "update"),
)
"""The names of all hooks, in the order of a step."""


def hooks(control: Control) -> tuple[str, ...]:
    """Return the hooks that this control, or a part of it, overrides, in the order of a step."""
    kinds = [type(part) for part in control.parts]
    return tuple(name for name in HOOKS if any(getattr(kind, name) is not getattr(Control, name) for kind in kinds))


def most_needed(control: Control) -> Needs:
    """Return all that the control may ask for in any step: before a command, and at the commands 1 and -1."""
    states = (control.initial_state(), control.state_at(1.0), control.state_at(-1.0))
    return reduce(or_, map(control.needs, states))


@dataclass(frozen=True)
class NoControl(Control):
    """`NoControl` does nothing: the entropy is not controlled."""

    name: ClassVar[str] = "none"


def require_rows(field: str, value: int | float) -> None:
    """Raise `InvalidValue` unless the value is a number of completions (integer) or a share of the step's ordinary
    completions (0.0 to 1.0).
    """
    ok = value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0
    require(ok, field, value, "a number of completions (integer, 0 or more) or a share of the batch (0.0 to 1.0)")


def rows(value: int | float, ordinary: int) -> int:
    """Return a value as a number of completions.

    Args:
        value: A number of completions (integer), or a share of the ordinary ones (fraction).
        ordinary: The number of ordinary completions of the step.
    """
    return value if isinstance(value, int) else round(value * ordinary)
