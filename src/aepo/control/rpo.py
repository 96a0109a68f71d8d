"""RPO: the likelihood of a reference solution as a regulariser (2405.16436, carried over)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from aepo.control.base import Control, Needs, Scored, State, Step
from aepo.errors import require
from aepo.types import BatchStatistics, Completion, Prompt, Rollout, Sample


@dataclass(frozen=True, kw_only=True)
class RPO(Control):
    """`RPO` is loss + eta * (-log pi of each token of a reference solution), where the data has one.

    2405.16436 adds eta times the negative log-likelihood of the preferred answer to DPO's loss. Carried over: one more
    row for each of the step's prompts that has a `solution`, with advantage 0 and this term instead.

    Sampled groups are numbered from 0. A solution's row has a group number below 0, by which `mark` knows it whatever
    another control adds, and reward 0, so that no other control takes it for a positive.
    """

    name: ClassVar[str] = "rpo"
    eta: float = 0.1
    """Coefficient of the term."""

    def __post_init__(self) -> None:
        require(self.eta > 0, "control.eta", self.eta, "a positive number")

    @property
    def adds_rows(self) -> bool:
        """Always true: each solution is a further row."""
        return True

    def needs(self, state: State) -> Needs:
        """Ask for reference solutions."""
        return Needs(solutions=True)

    def mix(self, ordinary: Sequence[Sample], extra: Sequence[Sample], state: State, step: Step) -> list[Sample]:
        """Return all rows and the solutions, one for each ordinary group whose prompt has one."""
        completions = [sample.rollout.completion for sample in ordinary]
        prompts = {completion.group: completion.prompt for completion in completions}
        return [*ordinary, *extra, *(_row(prompt, group) for group, prompt in prompts.items() if prompt.solution)]

    def mark(self, scored: Scored, state: State) -> Mapping[str, Tensor]:
        """Return `solution`: 1 on the tokens of solutions, else 0."""
        batch = scored.batch
        return {"solution": batch.mask * (batch.extra & (batch.groups < 0))[:, None]}

    def penalty(self, scored: Scored, new: BatchStatistics, state: State) -> Tensor:
        """Return eta * -log pi on the solutions, 0 elsewhere."""
        return -self.eta * new.logprobs * scored.marks["solution"]


def _row(prompt: Prompt, group: int) -> Sample:
    """Return the solution of the prompt of this ordinary group.

    Nothing sampled it, so its log-probabilities say nothing.
    """
    logprobs = (math.nan,) * len(prompt.solution)
    completion = Completion(prompt, -1 - group, 1.0, prompt.solution, logprobs, truncated=False)
    return Sample(Rollout(completion, 0.0), advantage=0.0, extra=True)
