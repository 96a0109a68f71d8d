"""EFRame: explore hard prompts, filter, replay (2506.22200)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from aepo.control.base import Control, ExtraGroup, FollowUp, Measured, Scored, State, Step
from aepo.control.dynamic_sampling import ordinary_groups, rounds_drawn
from aepo.errors import require
from aepo.loss.advantages import group_mean_std
from aepo.types import Completion, Prompt, Rollout, Sample


@dataclass(frozen=True, kw_only=True)
class EFRame(Control):
    """`EFRame` explores hard prompts, trains on telling completions only, and replays the best of them.

    Exploration: a prompt whose ordinary answers are all wrong gets `count` more completions at `temperature`. Filter:
    ordinary rows with |A| > `ordinary_threshold` and explored ones with |A| > `explored_threshold` (A within their own
    group) are trained on, but no truncated one with A > 0. Replay: rows of a step with |A| > `replay_threshold` (or A >
    it, see `replay_by`) join a buffer, first in, first out. Every `replay_freq` steps the buffer is trained on again,
    against the log-probabilities that its rows had when they were drawn.

    2506.22200 (G1 = 5, G2 = 20 at T = 1.2) and the authors' code (173b698) for the thresholds, 0.05, 1 and 1.

    State: `buffer`, rows of `prompt` and `completion` tokens, `logprobs` (nats, T = 1), `advantage` and `reward`.
    """

    name: ClassVar[str] = "eframe"
    count: int = 20
    """Additional completions of each prompt whose ordinary answers are all wrong."""
    temperature: float = 1.2
    """Temperature of the additional completions."""
    ordinary_threshold: float = 0.05
    """Ordinary rows are trained on if |A| is above this."""
    explored_threshold: float = 1.0
    """Additional rows are trained on if |A| within their own group is above this."""
    replay_threshold: float = 1.0
    """Rows join the replay buffer if |A| is above this."""
    replay_by: Literal["absolute", "signed"] = "absolute"
    """`absolute` replays rows with |A| above the threshold. `signed` replays rows with A above it, so right ones alone,
    as a later trainer of the authors does.
    """
    max_rounds: int = 1
    """Rounds of prompts in a step. Above 1, new prompts are drawn until the kept rows are as many as the step has
    ordinary ones.
    """
    replay_size: int | None = None
    """Rows in the replay buffer; none for twice the step's ordinary rows."""
    replay_freq: int = 5
    """Steps between two replays."""

    def __post_init__(self) -> None:
        require(self.count >= 2, "control.count", self.count, "at least 2, to compare within a group")
        require(self.temperature > 0, "control.temperature", self.temperature, "a positive temperature")
        for field in ("ordinary_threshold", "explored_threshold", "replay_threshold"):
            value = getattr(self, field)
            require(value >= 0, f"control.{field}", value, "an absolute advantage, 0 or more")
        require(self.max_rounds >= 1, "control.max_rounds", self.max_rounds, "at least 1 (no filling)")
        size = self.replay_size
        require(size is None or size >= 1, "control.replay_size", size, "at least 1 row, or none for two steps' worth")
        require(self.replay_freq >= 1, "control.replay_freq", self.replay_freq, "a number of steps, at least 1")

    def initial_state(self) -> State:
        """Return a state with an empty buffer."""
        return {"buffer": []}

    # --- exploration -------------------------------------------------------------------------------------

    def follow_up(self, rollouts: Sequence[Rollout], state: State, step: Step) -> FollowUp:
        """Ask for more completions of hard prompts, each once.

        Then, where rows are to be filled up, ask for new prompts.
        """
        groups = ordinary_groups(rollouts, step.temperature)
        explored = {id(r.completion.prompt) for r in rollouts if r.completion.group not in groups and self._own(r)}
        hard = [
            number
            for number, members in groups.items()
            if not any(rollout.right for rollout in members) and id(members[0].completion.prompt) not in explored
        ]
        if hard:
            return FollowUp(extra=tuple(ExtraGroup(number, self.count, self.temperature) for number in hard))
        rounds = rounds_drawn(len(groups), step, step.prompts)
        if not groups or rounds >= self.max_rounds or self._kept(rollouts, groups) >= _rows(step):
            return FollowUp()
        return FollowUp(prompts=step.prompts)

    # --- filter ------------------------------------------------------------------------------------------

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return the rows of the batch.

        Ordinary rows that do not pass the filter are measured and not trained on. Explored rows that do not pass it are
        dropped. Extra rows of other controls stay.
        """
        kept = [s if self._passes(s.rollout, s.advantage, False) else replace(s, trained=False) for s in ordinary]
        passed = [s for s in extra if not self._own(s.rollout) or self._passes(s.rollout, s.advantage, True)]
        return [*kept, *passed]

    def _passes(self, rollout: Rollout, advantage: float, explored: bool) -> bool:
        if advantage > 0 and rollout.completion.truncated:
            return False
        return abs(advantage) > (self.explored_threshold if explored else self.ordinary_threshold)

    def _own(self, rollout: Rollout) -> bool:
        """Return whether an extra completion is this control's."""
        return rollout.completion.temperature == self.temperature

    def _kept(self, rollouts: Sequence[Rollout], ordinary: Mapping[int, Any]) -> int:
        """Return how many of these will be trained on, by GRPO's advantages of the verifier's rewards."""
        numbers = [rollout.completion.group for rollout in rollouts]
        advantages = group_mean_std(torch.tensor([r.reward for r in rollouts]), torch.tensor(numbers)).tolist()
        pairs = zip(rollouts, advantages, strict=True)
        return sum(self._passes(r, a, r.completion.group not in ordinary) for r, a in pairs)

    # --- replay ------------------------------------------------------------------------------------------

    def replay(self, state: State, step: Step) -> tuple[Sample, ...]:
        """Return the rows to train on again, when a replay is due.

        A full buffer is replayed whole. A partly filled buffer gives a random choice of as many whole steps' worth of
        rows as it holds. A buffer of less than one step's worth is replayed whole. The rows of the present step are not
        in it yet.
        """
        if (step.number + 1) % self.replay_freq:
            return ()
        buffer, size = state["buffer"], len(state["buffer"])
        partial = _rows(step) <= size < self._capacity(step)
        count = size - size % _rows(step) if partial else size
        order = torch.randperm(size, generator=step.generator("replay rows"))[:count].sort().values
        return tuple(_sample(buffer[i], i) for i in order.tolist())

    def update(self, state: State, measured: Measured) -> State:
        """Add the step's telling rows to the buffer and drop the oldest ones."""
        if measured.entropy.mean != measured.entropy.mean:
            return state
        buffer = [*state["buffer"], *self._stored(measured.scored)]
        return {**state, "buffer": buffer[-self._capacity(measured.scored.step) :]}

    def _capacity(self, step: Step) -> int:
        return self.replay_size or 2 * _rows(step)

    def _stored(self, scored: Scored) -> list[dict[str, Any]]:
        batch, width = scored.batch, scored.batch.prompt_width
        advantages = batch.advantages[:, 0] if self.replay_by == "signed" else batch.advantages[:, 0].abs()
        telling = scored.trained[:, 0].bool() & (advantages > self.replay_threshold)
        stored = []
        for row in telling.nonzero()[:, 0].tolist():
            shown, mask = batch.attention_mask[row, :width].bool(), batch.mask[row].bool()
            stored.append(
                {
                    "prompt": batch.input_ids[row, :width][shown].tolist(),
                    "completion": batch.input_ids[row, width:][mask].tolist(),
                    "logprobs": scored.old.logprobs[row][mask].tolist(),
                    "advantage": batch.advantages[row, 0].item(),
                    "reward": batch.rewards[row].item(),
                    **({"images": [image.digest for image in batch.vision.rows[row]]} if batch.vision else {}),
                }
            )
        return stored


def _rows(step: Step) -> int:
    """Return the number of the step's ordinary rows."""
    return step.prompts * step.group_size


def _sample(row: Mapping[str, Any], number: int) -> Sample:
    prompt = Prompt(f"replay-{number}", tuple(row["prompt"]), {}, images=tuple(row.get("images", ())))
    answer, logprobs = tuple(row["completion"]), tuple(row["logprobs"])
    completion = Completion(prompt, number, 1.0, answer, logprobs, truncated=False)
    return Sample(Rollout(completion, row["reward"]), row["advantage"])
