"""Paths between two numbers: a task in which every prompt has many right answers.

The prompt `17 42 :` gives a start and a goal. A right completion such as `34 35 44 43 42` lists the numbers visited: a
move of `Paths.moves` leads to each from the one before. It ends (end-of-sequence token) at the goal after at most
`Paths.max_moves` numbers. Dynamic programming counts the right answers exactly, and from them follows the highest
entropy that a policy without a single error can reach: see `Paths.ceiling`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from aepo.errors import InvalidValue, require
from aepo.tasks.base import Problem, Task

SEPARATOR = ":"


@dataclass(frozen=True)
class Paths(Task):
    """`Paths` asks for a walk from a start to a goal within a limit (docs/tasks.md)."""

    numbers: int = 100
    """The walk stays in 0..numbers-1."""
    max_moves: int = 8
    """Most numbers in a right completion."""
    moves: tuple[tuple[int, int], ...] = ((1, 1), (1, -1), (1, 5), (1, -5), (1, 9), (1, -9), (2, 0))
    """Pairs (factor, offset); each leads from n to factor * n + offset."""
    move_weights: tuple[float, ...] = (5.0, 5.0, 1.0, 1.0, 1.0, 1.0, 1.0)
    """How often each move is tried in pre-training walks, on any positive scale."""
    walk_moves: tuple[int, int] = (2, 7)
    """Shortest and longest pre-training walk, in moves; lengths are uniform between them."""
    eval_pairs: int = 256
    """Number of (start, goal) pairs that are kept for evaluation, of all that can be solved."""
    train_pairs: int | None = 128
    """Number of the other pairs that are trained on; none for all of them."""
    train_distance: int = 4
    """Most moves that the shortest path of a training pair may take."""
    split_seed: int = 0
    """Seed that decides which pairs are kept for evaluation."""

    def __post_init__(self) -> None:
        first, last = self.walk_moves
        require(1 <= first <= last, "task.walk_moves", self.walk_moves, "the shortest and the longest walk, 1 or more")
        require(self.numbers >= 2, "task.numbers", self.numbers, "at least 2")
        require(self.max_moves >= 1, "task.max_moves", self.max_moves, "at least 1")
        if len(self.moves) != len(self.move_weights):
            raise InvalidValue("task.move_weights", self.move_weights, f"as many as moves ({len(self.moves)})")
        if not all(self._neighbours):
            raise InvalidValue("task.moves", self.moves, "such that a move leads on from every number")
        if not 0 < self.eval_pairs < len(self._pairs):
            raise InvalidValue("task.eval_pairs", self.eval_pairs, f"from 1 to {len(self._pairs) - 1}")
        if not self._train:
            raise InvalidValue("task.train_pairs", self.train_pairs, "such that a pair is left to train on")

    @property
    def max_tokens(self) -> int:
        """Return the largest length of a completion, tokens, with the end-of-sequence token."""
        return self.max_moves + 1

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return a training pair; each round through all pairs has a new random order."""
        lap, place = divmod(index, len(self._train))
        return self._problem(*self._train[_order(len(self._train), seed, lap)[place]])

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the problems of the first `count` evaluation pairs."""
        if count > self.eval_pairs:
            raise InvalidValue("evaluation.prompts", count, f"at most task.eval_pairs ({self.eval_pairs})")
        return [self._problem(*pair) for pair in self._pairs[:count]]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return 1.0 if the text is a path from problem["start"] to problem["goal"] within the limit, else 0.0."""
        words = text.split()
        if truncated or not 0 < len(words) <= self.max_moves:
            return 0.0
        path = [self._number_of.get(word, -1) for word in words]
        steps = zip([problem["start"], *path], path, strict=False)
        legal = all(after in self._neighbours[before] for before, after in steps)
        return float(legal and path[-1] == problem["goal"])

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return a shortest path; of several, the one that is smallest when compared number by number."""
        paths, seen = [[problem["start"]]], set[int]()
        for path in paths:  # breadth first: the loop appends the paths that it finds
            for there in sorted(self._neighbours[path[-1]] - seen) if len(path) <= self.max_moves else ():
                if there == problem["goal"]:
                    return " ".join(map(str, [*path[1:], there]))
                seen.add(there)
                paths.append([*path, there])
        return None

    @property
    def pretraining_key(self) -> Mapping[str, Any]:
        """Return the fields on which `pretraining_examples` depends."""
        names = ("numbers", "moves", "move_weights", "walk_moves")
        return {name: getattr(self, name) for name in names}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Return every word of a prompt or completion."""
        return (*map(str, range(self.numbers)), SEPARATOR)

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """Yield (prompt, completion) of random walks for ever; the goal of each is the number where the walk ends."""
        rng = random.Random(seed)
        while True:
            start = rng.randrange(self.numbers)
            walk = [start]
            for _ in range(rng.randint(*self.walk_moves)):
                walk.append(rng.choices(*self._weighted[walk[-1]])[0])
            yield self._prompt(start, walk[-1]), " ".join(map(str, walk[1:]))

    def path_counts(self) -> Tensor:
        """Return N[n - 1, s, g], the number of right completions of n moves from s to g; int64 [max_moves, M, M]."""
        return count_paths(self._adjacency, self.max_moves)

    def distances(self) -> Tensor:
        """Return the moves of the shortest path from s to g, or max_moves + 1 if there is none; int64 [M, M]."""
        return self.max_moves + 1 - self.path_counts().gt(0).cummax(0).values.sum(0)

    def ceiling(self) -> float:
        """Return the highest entropy of a policy that solves every training prompt, nats per token; see `ceiling`."""
        starts, goals = torch.tensor(self._train).T
        return ceiling(self.path_counts()[:, starts, goals])

    def _prompt(self, start: int, goal: int) -> str:
        return f"{start} {goal} {SEPARATOR}"

    def _problem(self, start: int, goal: int) -> Problem:
        return Problem(f"paths-{start}-{goal}", self._prompt(start, goal), {"start": start, "goal": goal})

    def _after(self, number: int) -> dict[int, float]:
        """Return the numbers to which one move leads, each with the sum of the weights of the moves that lead there."""
        after: dict[int, float] = {}
        for (factor, offset), weight in zip(self.moves, self.move_weights, strict=True):
            there = factor * number + offset
            if 0 <= there < self.numbers:
                after[there] = after.get(there, 0.0) + weight
        return after

    @cached_property
    def _neighbours(self) -> list[frozenset[int]]:
        return [frozenset(self._after(number)) for number in range(self.numbers)]

    @cached_property
    def _weighted(self) -> list[tuple[list[int], list[float]]]:
        after = [self._after(number) for number in range(self.numbers)]
        return [(list(there), list(there.values())) for there in after]

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {str(number): number for number in range(self.numbers)}

    @cached_property
    def _adjacency(self) -> Tensor:
        adjacency = torch.zeros(self.numbers, self.numbers, dtype=torch.int64)
        for number, there in enumerate(self._neighbours):
            adjacency[number, sorted(there)] = 1
        return adjacency

    @cached_property
    def _pairs(self) -> list[tuple[int, int]]:
        """Return every pair of different numbers that has a right completion, in a fixed random order."""
        reachable = self.distances().le(self.max_moves).fill_diagonal_(False)
        pairs = [(int(start), int(goal)) for start, goal in reachable.nonzero().tolist()]
        random.Random(self.split_seed).shuffle(pairs)
        return pairs

    @cached_property
    def _train(self) -> list[tuple[int, int]]:
        distances = self.distances().tolist()
        rest = self._pairs[self.eval_pairs :]
        return [(s, g) for s, g in rest if distances[s][g] <= self.train_distance][: self.train_pairs]


@lru_cache(maxsize=8)
def _order(size: int, seed: int, lap: int) -> list[int]:
    return random.Random(f"{seed}/{lap}").sample(range(size), size)


def count_paths(adjacency: Tensor, max_moves: int) -> Tensor:
    """Return N[n - 1, s, g], the number of walks of n = 1..max_moves moves from s to g.

    Args:
        adjacency: int64 [M, M]; 1 if one move leads from the row's number to the column's, else 0.
        max_moves: The largest number of moves.

    Returns:
        int64 [max_moves, M, M].
    """
    counts = [adjacency]
    while len(counts) < max_moves:
        counts.append(counts[-1] @ adjacency)
    return torch.stack(counts)


def ceiling(counts: Tensor) -> float:
    """Return the highest token-mean entropy, in nats per token, of any policy that is always right.

    The token-mean entropy of such a policy is sum_p H(q_p) / sum_p E_q[n + 1], where q_p is its distribution
    over the right completions of prompt p, since token entropies add up to that of the sequence. For a price
    lam per token, the largest sum_p H(q_p) - lam E_q[n + 1] is sum_p log Z_p(lam) with Z_p(lam) =
    sum_n N_n(p) exp(-lam (n + 1)), reached at q ~ exp(-lam (n + 1)). The ratio is at most lam exactly if that sum
    is at most 0 (Dinkelbach 1967), so the ceiling is the root of the sum. The root is unique, because the sum falls in
    lam.

    Args:
        counts: [L, P]; for each of P equally likely prompts, the number of right completions of n = 1..L moves (n + 1
            tokens).
    """
    log_counts = counts.double().log()
    tokens = torch.arange(2, counts.shape[0] + 2, dtype=torch.float64)[:, None]
    low, high = 0.0, max(float(log_counts.max()), 0.0) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        value = (log_counts - middle * tokens).logsumexp(0).mean()
        low, high = (middle, high) if value > 0 else (low, middle)
    return low
