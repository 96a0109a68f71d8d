"""`Both` runs two controls in one run, such as AEPO with dynamic sampling: `--method aepo+dynamic-sampling`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from aepo.control.base import (
    Control,
    ControlReport,
    ExtraGroup,
    FollowUp,
    Measured,
    Needs,
    NoControl,
    Scored,
    State,
    Step,
    hooks,
)
from aepo.errors import InvalidValue
from aepo.loss.surrogates import Bounds
from aepo.types import BatchStatistics, Rollout, Sample, TokenTemperature

EXCLUSIVE = ("plan", "token_temperature", "reward", "bounds", "replay")
"""The hooks that only one of the two controls may override, because two results cannot be joined."""


@dataclass(frozen=True, kw_only=True)
class Both(Control):
    """`Both` runs two controls. Each has its own state.

    `mix`, `shape` and `reshape` of `second` act on the result of `first`. The results of the other hooks are joined:
    extra groups of both, the larger number of new prompts, the sum of the penalties, the marks of both (of one name:
    the second's), and what the first reports before what the second does. Only one of the two may override each hook in
    `EXCLUSIVE`.

    Raises:
        InvalidValue: Both override one hook of `EXCLUSIVE`, or both need the entropy of a part of the vocabulary.
    """

    name: ClassVar[str] = "both"
    first: Control = NoControl()
    """The control that acts first."""
    second: Control = NoControl()
    """The other control."""

    def __post_init__(self) -> None:
        names = f"{self.first.name} and {self.second.name}"
        shared = [hook for hook in EXCLUSIVE if all(hook in hooks(part) for part in self._pair)]
        if shared:
            raise InvalidValue("control", names, f"two controls of which only one has the hook {shared[0]}")
        if all(part.needs(part.initial_state()).kept for part in self._pair):
            raise InvalidValue("control", names, "two controls of which one looks at a part of the vocabulary")

    @property
    def parts(self) -> tuple[Control, ...]:
        """Return the single controls of both."""
        return self.first.parts + self.second.parts

    @property
    def _pair(self) -> tuple[Control, Control]:
        return self.first, self.second

    def _of(self, state: State) -> tuple[State, State]:
        return state["first"], state["second"]

    @property
    def shuffle(self) -> bool:  # type: ignore[override]
        """Return whether the rows are spread over the minibatches; false if one of the two keeps their order."""
        return self.first.shuffle and self.second.shuffle

    @property
    def acts_off_policy(self) -> bool:  # type: ignore[override]
        """Return whether one of the two acts only off policy."""
        return self.first.acts_off_policy or self.second.acts_off_policy

    @property
    def compares_groups(self) -> bool:  # type: ignore[override]
        """Return whether both leave the comparison within groups as it is."""
        return self.first.compares_groups and self.second.compares_groups

    @property
    def needs_right(self) -> bool:
        """Return whether one of the two does nothing while no completion counts as right."""
        return self.first.needs_right or self.second.needs_right

    @property
    def reinforces_extra(self) -> bool:  # type: ignore[override]
        """Return whether one of the two trains on extra rows by REINFORCE. It then holds for the extra rows of both."""
        return self.first.reinforces_extra or self.second.reinforces_extra

    @property
    def adds_rows(self) -> bool:
        """Return whether one of the two adds rows."""
        return self.first.adds_rows or self.second.adds_rows

    def in_place(self) -> Both:
        """Return the pair with `in_place` applied to both."""
        return replace(self, first=self.first.in_place(), second=self.second.in_place())

    def initial_state(self) -> State:
        """Return the initial states of both, as `first` and `second`."""
        return {"first": self.first.initial_state(), "second": self.second.initial_state()}

    def state_at(self, command: float, extra_accuracy: float = 1.0) -> State:
        """Return the states of both at this command."""
        parts = {"first": self.first, "second": self.second}
        return {name: part.state_at(command, extra_accuracy) for name, part in parts.items()}

    def needs(self, state: State) -> Needs:
        """Return all that the two need."""
        first, second = self._of(state)
        return self.first.needs(first) | self.second.needs(second)

    def plan(self, state: State, step: Step) -> tuple[ExtraGroup, ...]:
        """Return the extra groups of the control that overrides the hook."""
        first, second = self._of(state)
        return self.first.plan(first, step) + self.second.plan(second, step)

    def token_temperature(self, state: State) -> TokenTemperature | None:
        """Return the token temperatures of the control that has them."""
        first, second = self._of(state)
        return self.first.token_temperature(first) or self.second.token_temperature(second)

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """Return the extra groups of both, and the larger of the two numbers of new prompts."""
        first, second = self._of(state)
        a, b = self.first.follow_up(rollouts, first, step), self.second.follow_up(rollouts, second, step)
        return FollowUp(a.extra + b.extra, max(a.prompts, b.prompts))

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """Return the rewards of the control that changes them."""
        first, second = self._of(state)
        if "reward" in hooks(self.first):
            return self.first.reward(rollouts, first, step)
        return self.second.reward(rollouts, second, step)

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return the rows that the second control makes of the first one's rows."""
        first, second = self._of(state)
        rows = self.first.mix(ordinary, extra, first, step)
        kept = [sample for sample in rows if not sample.extra], [sample for sample in rows if sample.extra]
        return self.second.mix(*kept, second, step) if "mix" in hooks(self.second) else rows

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return the marks of both."""
        first, second = self._of(state)
        return {**self.first.mark(scored, first), **self.second.mark(scored, second)}

    def shape(self, advantages: Tensor, scored: Scored, state: State) -> Tensor:
        """Return the advantages of the first control, shaped by the second."""
        first, second = self._of(state)
        return self.second.shape(self.first.shape(advantages, scored, first), scored, second)

    def reshape(self, advantages: Tensor, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return the advantages of the first control, reshaped by the second."""
        first, second = self._of(state)
        return self.second.reshape(self.first.reshape(advantages, scored, new, first), scored, new, second)

    def bounds(self, scored: Scored, new: BatchStatistics, state: State) -> Bounds | None:
        """Return the bounds of the control that has them."""
        first, second = self._of(state)
        return self.first.bounds(scored, new, first) or self.second.bounds(scored, new, second)

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor | None:
        """Return the sum of the penalties; None if there is none."""
        parts = [part.penalty(scored, new, own) for part, own in zip(self._pair, self._of(state), strict=True)]
        given = [penalty for penalty in parts if penalty is not None]
        return sum(given[1:], given[0]) if given else None

    def replay(self, state: State, step: Step) -> tuple[Sample, ...]:
        """Return the rows of the control that replays."""
        first, second = self._of(state)
        return self.first.replay(first, step) + self.second.replay(second, step)

    def update(self, state: State, measured: Measured) -> State:
        """Return the next states of both, as `first` and `second`."""
        first, second = self._of(state)
        return {"first": self.first.update(first, measured), "second": self.second.update(second, measured)}

    def report(self, before: State, after: State) -> ControlReport:
        """Return what the first reports, and what the second reports where the first has nothing."""
        pairs = zip(self._pair, self._of(before), self._of(after), strict=True)
        first, second = (part.report(old, new) for part, old, new in pairs)
        return first | second
