"""The hooks at which a control may act. Each has the identity as its default.

    plan        before sampling: extra completions, how many, of which prompts, at which temperature
    token_temperature  before sampling: a temperature for each token of the ordinary completions
    follow_up   after the first rewards: draw more where it pays
    reward      rewards -> rewards that the completions are compared by
    mix         after rewards and advantages: what is trained on
    mark        after scoring: what later hooks need to know of each token, once over the whole batch
    shape       after scoring: advantages [B, T] -> [B, T], once over the whole batch, no gradient
    reshape     in every pass: the same for methods that look at the current policy
    bounds      in every pass: clip bounds
    penalty     in every pass: a per-token term with gradient, added to the loss
    replay      after the update: rows of earlier steps to train on once more
    update      at the end of the step: what was measured -> the next state

A control is a frozen dataclass: its fields are settings. What must be remembered is the state, plain JSON data
that goes in and out, so it is checkpointed by construction. Every hook is a pure function.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import or_
from typing import Any, ClassVar

import torch
from torch import Tensor

from aepo.control.laws import PI, Law
from aepo.control.schedules import Target
from aepo.entropy.partial import Kept
from aepo.errors import require
from aepo.loss.surrogates import Bounds
from aepo.types import Batch, BatchStatistics, Metric, Rollout, Sample, TokenTemperature, asked_for, is_right

State = Mapping[str, Any]

# Steps in a row that a command may be at its limit, the error not shrinking, before the run says so.
ALARM_AFTER = 20
# Nats; an error below it is no reason for an alarm.
ALARM_ERROR = 0.1


def generator(seed: int, step: int, purpose: str) -> torch.Generator:
    """Randomness as a function of (seed, step, purpose): nothing to save, nothing to restore."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True)
class Step:
    """Where in the run a hook happens: step `number` (from 0) of `steps`, `prompts` groups of `group_size`.

    max_tokens: the longest completion that is sampled.
    """

    number: int
    steps: int
    prompts: int
    group_size: int
    max_tokens: int
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        """A generator of its own for each purpose within the step."""
        return generator(self.seed, self.number, purpose)


@dataclass(frozen=True)
class ExtraGroup:
    """Draw `count` more completions at `temperature` of the prompt whose ordinary group has the number `prompt`."""

    prompt: int
    count: int
    temperature: float


@dataclass(frozen=True)
class FollowUp:
    """What to draw in a further round: `extra` groups, and ordinary groups of `prompts` new prompts."""

    extra: tuple[ExtraGroup, ...] = ()
    prompts: int = 0

    def __bool__(self) -> bool:
        return bool(self.extra) or self.prompts > 0


@dataclass(frozen=True)
class Scored:
    """A batch with its statistics under the policy that sampled it; no gradient.

    ref_logprobs: [B, T], log pi_ref(y_t) of the frozen base model, when `Needs.reference` asked for it.
    marks: what the control's `mark` returned, each [B, T].
    """

    batch: Batch
    old: BatchStatistics
    step: Step
    ref_logprobs: Tensor | None = None
    marks: Mapping[str, Tensor] = field(default_factory=dict)

    def select(self, rows: Tensor) -> Scored:
        """These rows (an index or a bool mask, [B])."""
        return replace(
            self,
            batch=self.batch.select(rows),
            old=self.old.select(rows),
            ref_logprobs=None if self.ref_logprobs is None else self.ref_logprobs[rows],
            marks={name: values[rows] for name, values in self.marks.items()},
        )

    @property
    def entropy(self) -> Tensor:
        """The exact entropies under the policy that sampled, nats, [B, T]; every step measures them."""
        return asked_for(self.old.entropy)

    @property
    def trained(self) -> Tensor:
        """The mask of the tokens that are trained on, [B, T]."""
        return self.batch.mask * self.batch.trained[:, None]

    @property
    def ordinary(self) -> Tensor:
        """The mask of the ordinary rows' tokens, trained on or not, [B, T]: what a sensor reads."""
        return self.batch.mask * ~self.batch.extra[:, None]


@dataclass(frozen=True)
class Measured:
    """What a step measured, for `update`.

    entropy: the sensor (docs/entropy.md), exact, nats per token, over all ordinary completions under the policy
    that sampled them. mixed_sampled_entropy: -log pi of the trained tokens, extra rows included, recorded while
    the weights move: the authors' sensor. reward: the verifier's. extra: the extra completions drawn. scored: the
    whole batch, with advantages as they were before `shape`, for sensors of other kinds.
    """

    entropy: Metric
    mixed_sampled_entropy: Metric
    reward: Metric
    extra: Sequence[Sample]
    scored: Scored

    @property
    def step(self) -> int:
        """The step's number."""
        return self.scored.step.number


@dataclass(frozen=True)
class Needs:
    """`Needs` lists what a control asks of the engine in a step. What is not asked for costs nothing."""

    temperatures: tuple[float, ...] = ()
    """Temperatures T at which log pi^T(y) of each token is measured."""
    entropy_gradient: bool = False
    """Whether the entropy that `penalty` reads carries a gradient."""
    kept: Kept | None = None
    """The part of the vocabulary over which a second entropy is taken; in `penalty` it carries a gradient."""
    reference: bool = False
    """Whether the log-probabilities of the frozen base model are needed."""
    solutions: bool = False
    """Whether the prompts need reference solutions."""

    @property
    def in_update(self) -> Needs:
        """The part of the needs that the forward passes of the update must serve."""
        return Needs(entropy_gradient=self.entropy_gradient, kept=self.kept)

    def __or__(self, other: Needs) -> Needs:
        """Return what either asks for; where both keep a part of the vocabulary, the first one's part."""
        return Needs(
            temperatures=tuple(dict.fromkeys(self.temperatures + other.temperatures)),
            entropy_gradient=self.entropy_gradient or other.entropy_gradient,
            kept=self.kept or other.kept,
            reference=self.reference or other.reference,
            solutions=self.solutions or other.solutions,
        )


# What a state may hold for the log, with what stands for nothing: measured in the step, or acted on by it.
_MEASURED: Mapping[str, Any] = {"target_entropy": None, "error": None, "alarm": False}
_ACTED_ON: Mapping[str, Any] = {"command": None, "saturated": 0.0, "coefficient": None}
NOT_REPORTED: Mapping[str, Any] = {**_MEASURED, **_ACTED_ON}


class Control(ABC):
    """Entropy control: sensor, law and actuator. A subclass overrides the hooks it needs."""

    name: ClassVar[str]
    # True for what acts only where pi has moved away from the policy that sampled: a second update per rollout.
    acts_off_policy: bool = False
    # False keeps the rows in the order that `mix` gives them instead of spreading them over the minibatches.
    shuffle: bool = True
    # Completions of each extra group; None for the step's group size.
    per_prompt: int | None = None
    # New prompts of each further round of `follow_up`; None for as many as the step has.
    prompts_per_round: int | None = None

    @property
    def parts(self) -> tuple[Control, ...]:
        """The single controls that this one is made of."""
        return (self,)

    @property
    def adds_rows(self) -> bool:
        """Whether a batch may hold more rows than the step has ordinary completions."""
        return False

    def in_place(self) -> Control:
        """Return the nearest control whose extra rows take the places of ordinary ones; itself if it adds none."""
        return self

    @property
    def idle_at_ratio_one(self) -> bool:
        """Whether the control does nothing while the ratio pi / pi_old is 1, that is, with one update for a rollout."""
        return self.acts_off_policy or "bounds" in hooks(self)

    def initial_state(self) -> State:
        """The state before the first step."""
        return {}

    def state_at(self, command: float, extra_accuracy: float = 1.0) -> State:
        """Return a state in the middle of a run, to ask the control what it would do.

        Args:
            command: The command that the state holds, from -1 to 1; only for a control that commands.
            extra_accuracy: The share of the extra completions that are right.
        """
        state = self.initial_state()
        return {**state, "command": command} if "command" in state else state

    def needs(self, state: State) -> Needs:
        """What `shape` and `penalty` will read in this step."""
        return Needs()

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """Extra groups to draw in the step's first sampling call."""
        return ()

    def token_temperature(self, state: State) -> TokenTemperature | None:
        """The temperature of each token of the ordinary completions, from its entropy; None for 1."""
        return None

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """What to draw next, given all that was drawn so far in the step; asked again until it is nothing."""
        return FollowUp()

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """The rewards that advantages are taken from; logs and positives keep the verifier's."""
        return [rollout.reward for rollout in rollouts]

    def mix(
        self,
        ordinary: Sequence[Sample],
        extra: Sequence[Sample],
        state: State,
        step: Step,
    ) -> list[Sample]:
        """The rows of the batch: every ordinary sample (perhaps with trained=False) and the extra ones used.

        `extra` comes with advantages taken within the extra groups themselves.
        """
        return [*ordinary, *extra]

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Per-token facts [B, T] by name, over the whole batch at once; later hooks find them in `scored.marks`."""
        return {}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Advantages [B, T] -> [B, T] over the whole batch at once."""
        return advantages

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Advantages [B, T] -> [B, T] of a microbatch, given the current policy's `new`; no gradient."""
        return advantages

    def bounds(self, scored: Scored, state: State) -> Bounds | None:
        """Clip bounds for a microbatch in place of the surrogate's own."""
        return None

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """A per-token term [B, T] added to the loss of a microbatch; `new` is the current policy's, with gradient."""
        return None

    def replay(self, state: State, step: Step) -> tuple[Sample, ...]:
        """Rows to train on once more after the step's own; their completions' logprobs are the old ones, at T = 1."""
        return ()

    def update(self, state: State, measured: Measured) -> State:
        """The next step's state."""
        return state

    def report(self, before: State, after: State) -> dict[str, Any]:
        """For the log: what was measured in the step, and what the step acted on."""
        measured = {key: after.get(key, nothing) for key, nothing in _MEASURED.items()}
        return {**measured, **{key: before.get(key, nothing) for key, nothing in _ACTED_ON.items()}}


# In the order of a step.
HOOKS = (
    *("plan", "token_temperature", "follow_up", "reward", "mix", "mark", "shape"),
    *("reshape", "bounds", "penalty", "replay", "update"),
)


def hooks(control: Control) -> tuple[str, ...]:
    """The hooks at which this control, or a part of it, acts, in the order of a step."""
    kinds = [type(part) for part in control.parts]
    return tuple(name for name in HOOKS if any(getattr(kind, name) is not getattr(Control, name) for kind in kinds))


def most_needed(control: Control) -> Needs:
    """Return all that the control may ask for in any step: before its first command, and at full command either way."""
    states = (control.initial_state(), control.state_at(1.0), control.state_at(-1.0))
    return reduce(or_, map(control.needs, states))


@dataclass(frozen=True)
class NoControl(Control):
    """Plain GRPO and its kin: entropy goes where it goes."""

    name: ClassVar[str] = "none"


@dataclass(frozen=True, kw_only=True)
class ClosedLoop(Control):
    """A control that measures, compares with a target and commands.

    The first step measures and commands nothing. The command that step k acts on comes from the entropy of
    step k - 1. State: `first_entropy`, `integral`, `command` (None before there is one), and, for the log,
    `target_entropy`, `error`, `saturated` (1.0 when the command is at its limit and the error asks for more), `alarm`.
    """

    target: Target = Target("0.5")
    """Entropy to hold: nats per token, a multiple of the first measured entropy such as 0.6x, or a schedule."""
    law: Law = PI()
    """How the error becomes a command."""

    def initial_state(self) -> State:
        """Nothing measured yet, so no command."""
        return {"command": None, "integral": 0.0, "first_entropy": None}

    def reading(self, measured: Measured) -> float:
        """The entropy that the loop controls, nats per token."""
        return measured.entropy.mean

    def update(self, state: State, measured: Measured) -> State:
        """Measure, compare, command. A step that measured nothing (NaN) leaves the state as it was."""
        known = compared(state, self.target, self.reading(measured), measured.step)
        if known is None:
            return state
        error: float = known["error"]
        command, integral = self.law(error, state["integral"])
        saturated = abs(command) >= 1 and command * error > 0
        return {
            **state,
            **known,
            "integral": integral,
            "command": command,
            "saturated": float(saturated),
            **_watch(state, error, saturated),
        }


def compared(state: State, target: Target, entropy: float, step: int) -> dict[str, Any] | None:
    """`first_entropy`, `target_entropy` and `error` of a step that measured `entropy`; None if that is NaN."""
    if entropy != entropy:
        return None
    first = entropy if state["first_entropy"] is None else state["first_entropy"]
    aimed = target.at(step, first)
    return {"first_entropy": first, "target_entropy": aimed, "error": aimed - entropy}


def _watch(state: State, error: float, saturated: bool) -> dict[str, Any]:
    """Count saturated steps on one side of the target; every `ALARM_AFTER` of them, ask whether the error shrank."""
    count, error_then = state.get("saturated_steps", 0), state.get("saturated_error", 0.0)
    if not saturated:
        return {"saturated_steps": 0, "saturated_error": 0.0, "alarm": False}
    if count == 0 or error * error_then <= 0:
        return {"saturated_steps": 1, "saturated_error": error, "alarm": False}
    if (count + 1) % ALARM_AFTER:
        return {"saturated_steps": count + 1, "saturated_error": error_then, "alarm": False}
    alarm = abs(error) > ALARM_ERROR and abs(error) > 0.9 * abs(error_then)
    return {"saturated_steps": count + 1, "saturated_error": error, "alarm": alarm}


def is_correct(rollout: Rollout) -> bool:
    """A positive: the verifier gave more than half of the full reward, 1."""
    return is_right(rollout.reward)


def require_rows(field: str, value: int | float) -> None:
    """A number of completions (integer) or a share of the step's ordinary ones (fraction up to 1.0)."""
    ok = value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0
    require(ok, field, value, "a number of completions (integer, 0 or more) or a share of the batch (0.0 to 1.0)")


def rows(value: int | float, ordinary: int) -> int:
    """`value` as a number of completions in a step of `ordinary` ones."""
    return value if isinstance(value, int) else round(value * ordinary)
