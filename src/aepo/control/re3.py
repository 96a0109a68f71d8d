"""RE3: reward right answers that differ from the others of their group (2102.09430, carried over)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from aepo.control.base import Control, State, Step, generator
from aepo.control.dynamic_sampling import by_group
from aepo.errors import require
from aepo.types import Rollout


@dataclass(frozen=True, kw_only=True)
class RE3(Control):
    """`RE3` is reward + beta_0 (1 - rho)^step log(1 + ||y_i - y_i^(k-NN)||) for right completions.

    2102.09430, Eq. 4 and 5, is about states of an environment and a random encoder y. Carried over: y is the mean of a
    completion's fixed random token vectors, and the neighbours are the other completions of the group. With fewer than
    k of them, the farthest one counts. Only right answers are paid, because otherwise nonsense would be novel. A token
    vector is N(0, 1 / dimension), so its length is about 1.
    """

    name: ClassVar[str] = "re3"
    k: int = 3
    """Which nearest neighbour counts; 3 in the paper."""
    beta_0: float = 0.05
    """Weight of the novelty at step 0, reward per unit."""
    rho: float = 0.01
    """Share of the weight that is lost in each step."""
    dimension: int = 50
    """Dimension of the token vectors."""
    seed: int = 0
    """Seed of the token vectors."""

    def __post_init__(self) -> None:
        require(self.k >= 1, "control.k", self.k, "a number of neighbours, at least 1")
        require(self.beta_0 > 0, "control.beta_0", self.beta_0, "a positive number")
        require(0 <= self.rho < 1, "control.rho", self.rho, "a share in [0, 1)")
        require(self.dimension >= 1, "control.dimension", self.dimension, "at least 1")
        require(0 <= self.seed < 2**63, "control.seed", self.seed, "an integer from 0 to 2^63 - 1")

    def reward(self, rollouts: Sequence[Rollout], state: State, step: Step) -> list[float]:
        """Return the verifier's rewards plus the weighted novelty of right answers."""
        weight = self.beta_0 * (1 - self.rho) ** step.number
        novelty: dict[int, float] = {}
        for members in by_group(rollouts).values():
            novelty |= zip(map(id, members), self._novelty(members), strict=True)
        return [r.reward + weight * novelty[id(r)] * r.right for r in rollouts]

    def _novelty(self, members: Sequence[Rollout]) -> list[float]:
        """Return log(1 + distance to the k-th nearest of the others); 0 where there is no other."""
        others = len(members) - 1
        if others == 0:
            return [0.0]
        y = torch.stack([self._encoded(member.completion.tokens) for member in members])
        # By differences: distances of equal completions are exactly 0. The first neighbour is the completion itself.
        nearest = (y[:, None] - y[None]).norm(dim=-1).sort(dim=1).values
        return nearest[:, min(self.k, others)].log1p().tolist()  # type: ignore[no-any-return]

    def _encoded(self, tokens: Sequence[int]) -> Tensor:
        if not tokens:
            return torch.zeros(self.dimension, dtype=torch.float64)
        vectors: list[Tensor] = [_vector(self.seed, token, self.dimension) for token in tokens]
        return torch.stack(vectors).mean(0)


@lru_cache(maxsize=2**16)
def _vector(seed: int, token: int, dimension: int) -> Tensor:
    """Return a token's vector, a function of these arguments alone."""
    noise = torch.randn(dimension, generator=generator(seed, token, "re3"), dtype=torch.float64)
    return noise / math.sqrt(dimension)
