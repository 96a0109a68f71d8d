"""The moments at which a control may act. Each has the identity as its default.

    plan      before sampling: extra completions, how many, of which prompts, at which temperature
    mix       after rewards and advantages: what is trained on
    shape     after scoring: advantages [B, T] -> [B, T], no gradient
    penalty   in the loss: a per-token term with gradient
    update    at the end of the step: what was measured -> the next state

A control is a frozen dataclass: its fields are settings. What must be remembered is the state, plain JSON data
that goes in and out, so it is checkpointed by construction. Every moment is a pure function.
"""

from __future__ import annotations

import hashlib
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aepo.checks import require
from aepo.laws import PI, Law
from aepo.schedules import Target
from aepo.types import Batch, Metric, Rollout, Sample, TokenStats

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
    """Where in the run a moment happens."""

    number: int
    prompts: int
    group_size: int
    seed: int

    def generator(self, purpose: str) -> torch.Generator:
        """A generator of its own for each purpose within the step."""
        return generator(self.seed, self.number, purpose)


@dataclass(frozen=True)
class ExtraGroup:
    """Draw `count` more completions of the step's prompt number `prompt` at `temperature`."""

    prompt: int
    count: int
    temperature: float


@dataclass(frozen=True)
class Scored:
    """A batch with its statistics under the policy that sampled it; no gradient."""

    batch: Batch
    old: TokenStats


@dataclass(frozen=True)
class Measured:
    """What a step measured, for `update`.

    entropy: the sensor (docs/entropy.md), exact, nats per token, over all ordinary completions under the policy
    that sampled them. mixed_sampled_entropy: -log pi of the trained tokens, extra rows included, recorded while
    the weights move: the authors' sensor. extra: the extra completions drawn.
    """

    step: int
    entropy: Metric
    mixed_sampled_entropy: Metric
    reward: Metric
    extra: Sequence[Sample]


@dataclass(frozen=True)
class Needs:
    """The statistics that a control asks of the pass over the hidden states. Asking for none costs nothing."""

    temperatures: tuple[float, ...] = ()
    entropy_gradient: bool = False


class Control(ABC):
    """Entropy control: sensor, law and actuator. A subclass overrides the moments it needs."""

    name: ClassVar[str]
    # False keeps extra rows in front of the batch instead of spreading all rows over the minibatches.
    shuffle: bool = True

    def initial_state(self) -> State:
        """The state before the first step."""
        return {}

    def needs(self, state: State) -> Needs:
        """What `shape` and `penalty` will read in this step."""
        return Needs()

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """Extra groups to draw in the step's one sampling call."""
        return ()

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

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Advantages [B, T] -> [B, T] over the whole batch at once."""
        return advantages

    def penalty(self, scored: Scored, new: TokenStats, state: State) -> Tensor | None:
        """A per-token term [B, T] added to the loss; `new` is the current policy's, with gradient."""
        return None

    def update(self, state: State, measured: Measured) -> State:
        """The next step's state."""
        return state


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
    law: Law = PI()

    def initial_state(self) -> State:
        """Nothing measured yet, so no command."""
        return {"command": None, "integral": 0.0, "first_entropy": None}

    def reading(self, measured: Measured) -> float:
        """The entropy that the loop controls, nats per token."""
        return measured.entropy.mean

    def update(self, state: State, measured: Measured) -> State:
        """Measure, compare, command. A step that measured nothing (NaN) leaves the state as it was."""
        entropy = self.reading(measured)
        if entropy != entropy:
            return state
        first = entropy if state["first_entropy"] is None else state["first_entropy"]
        target = self.target.at(measured.step, first)
        error = target - entropy
        command, integral = self.law(error, state["integral"])
        saturated = abs(command) >= 1 and command * error > 0
        return {
            **state,
            "first_entropy": first,
            "integral": integral,
            "command": command,
            "target_entropy": target,
            "error": error,
            "saturated": float(saturated),
            **_watch(state, error, saturated),
        }


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
    return rollout.reward > 0.5


def require_rows(field: str, value: int | float) -> None:
    """A number of completions (integer) or a share of the step's ordinary ones (fraction up to 1.0)."""
    ok = value >= 0 if isinstance(value, int) else 0.0 <= value <= 1.0
    require(ok, field, value, "a number of completions (integer, 0 or more) or a share of the batch (0.0 to 1.0)")


def rows(value: int | float, ordinary: int) -> int:
    """`value` as a number of completions in a step of `ordinary` ones."""
    return value if isinstance(value, int) else round(value * ordinary)
