"""Countdown: the task to combine all given numbers with + - * / so that the result is the target.

The prompt `3 7 12 = 15 :` asks for an expression such as `( 12 - 7 ) * 3`. Most problems have few right answers, so
most entropy of this task is error; see docs/tasks.md.
"""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

from aepo.errors import InvalidValue
from aepo.tasks.base import Problem, Task

EQUALS, SEPARATOR = "=", ":"
OPERATORS: dict[str, Callable[[Fraction, Fraction], Fraction]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
}


@dataclass(frozen=True)
class Countdown(Task):
    """`Countdown` asks for an expression that reaches a target with each number exactly once (docs/tasks.md)."""

    count: int = 3
    """How many numbers a problem has."""
    largest: int = 20
    """Largest number: numbers are 1..largest."""
    largest_target: int = 60
    """Largest target: targets are 1..largest_target."""
    eval_problems_kept: int = 256
    """Number of problems that are kept for evaluation."""

    def __post_init__(self) -> None:
        if self.count < 2 or self.largest < 1 or self.largest_target < 1:
            raise InvalidValue("task", asdict(self), "two numbers or more, all of them positive")

    @property
    def max_tokens(self) -> int:
        """Return the room for an expression with every inner operation in parentheses and the end of the sequence."""
        return 4 * self.count - 4

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return a random problem that has an answer and is not kept for evaluation; each index is independent."""
        rng = random.Random(f"{seed}/{index}")
        while (problem := self._problem(*self._draw(rng))).id in self._kept:
            pass
        return problem

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the first `count` evaluation problems."""
        if count > self.eval_problems_kept:
            raise InvalidValue(
                "evaluation.prompts", count, f"at most task.eval_problems_kept ({self.eval_problems_kept})"
            )
        return list(self._kept.values())[:count]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return 1.0 if the text is an expression of all numbers, each once, that equals the target, else 0.0."""
        words = text.split()
        if truncated or len(words) >= self.max_tokens:
            return 0.0
        used = [word for word in words if word not in OPERATORS and word not in ("(", ")")]
        if sorted(used) != sorted(map(str, problem["numbers"])):
            return 0.0
        return float(expression_value(words) == problem["target"])

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return the expression from which the target was made."""
        return str(problem["solution"])

    @property
    def pretraining_key(self) -> Mapping[str, Any]:
        """Return the fields on which `pretraining_examples` depends."""
        return {name: getattr(self, name) for name in ("count", "largest", "largest_target")}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Return every word of a prompt or completion."""
        numbers = map(str, range(1, max(self.largest, self.largest_target) + 1))
        return (*numbers, *OPERATORS, "(", ")", EQUALS, SEPARATOR)

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """Yield (prompt, completion) of random expressions for ever; the target of each is the expression's value."""
        rng = random.Random(seed)
        while True:
            numbers, target, expression = self._draw(rng)
            yield self._problem(numbers, target, expression).text, expression

    def _problem(self, numbers: tuple[int, ...], target: int, expression: str) -> Problem:
        listed = " ".join(map(str, numbers))
        name = "-".join(map(str, sorted(numbers)))
        data = {"numbers": numbers, "target": target, "solution": expression}
        return Problem(f"countdown-{name}-{target}", f"{listed} {EQUALS} {target} {SEPARATOR}", data)

    def _draw(self, rng: random.Random) -> tuple[tuple[int, ...], int, str]:
        """Return random numbers, a target that they can reach, and an expression that reaches it."""
        while True:
            numbers = tuple(rng.randint(1, self.largest) for _ in range(self.count))
            expression = _random_expression(rng, numbers)
            value = expression_value(expression.split())
            if value is not None and value.denominator == 1 and 1 <= value <= self.largest_target:
                return numbers, int(value), expression

    @cached_property
    def _kept(self) -> dict[str, Problem]:
        rng, kept = random.Random("evaluation"), dict[str, Problem]()
        while len(kept) < self.eval_problems_kept:
            problem = self._problem(*self._draw(rng))
            kept.setdefault(problem.id, problem)
        return kept


def expression_value(words: list[str]) -> Fraction | None:
    """Return the exact value of an expression of integers, + - * / and parentheses; None if it has no value.

    The function recurses once per open parenthesis, so the caller must bound the length.
    """
    left = list(reversed(words))
    try:
        value = _sum(left)
    except (ValueError, IndexError, ZeroDivisionError):
        return None
    return None if left else value


def _sum(left: list[str]) -> Fraction:
    """Remove a sum from the end of `left`, which holds the words in reverse, and return its value."""
    value = _product(left)
    while left and left[-1] in ("+", "-"):
        value = OPERATORS[left.pop()](value, _product(left))
    return value


def _product(left: list[str]) -> Fraction:
    value = _atom(left)
    while left and left[-1] in ("*", "/"):
        value = OPERATORS[left.pop()](value, _atom(left))
    return value


def _atom(left: list[str]) -> Fraction:
    word = left.pop()
    if word != "(":
        return Fraction(int(word))
    value = _sum(left)
    if left.pop() != ")":
        raise ValueError("a parenthesis is not closed")
    return value


def _random_expression(rng: random.Random, numbers: tuple[int, ...]) -> str:
    """Join two random parts by a random operator until one is left; inner operations get parentheses."""
    parts = [str(number) for number in numbers]
    while len(parts) > 1:
        first = parts.pop(rng.randrange(len(parts)))
        second = parts.pop(rng.randrange(len(parts)))
        joined = f"{first} {rng.choice(list(OPERATORS))} {second}"
        parts.append(f"( {joined} )" if parts else joined)
    return parts[0]
