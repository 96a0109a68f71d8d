"""Short Python functions: a task of code that a small model learns on a CPU, with many right programs for each prompt.

The prompt says what the function f(x) must compute: `items 2 -1 0 :` asks for [a + 2, b - 1, c] of a list of integers
[a, b, c], `int 6 4 :` for 6 x + 4 of an integer, `list c b a :` for the list [c, b, a] of the list [a, b, c, d]. The
completion is the body, one statement a word: `x[1]-=1 x[0]+=2`. It is right if the function passes all generated tests.
Every function has many right bodies: steps can be exchanged, divided, undone and done again, and those of the kinds int
and list have two spellings each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch

from aepo.errors import InvalidValue, require
from aepo.grading.code.problem import Call, CodeProblem
from aepo.tasks.base import Problem, Task
from aepo.tasks.paths import ceiling

SEPARATOR = ":"
LETTERS = "abcd"
STATEMENTS: Mapping[str, tuple[str, ...]] = {
    "int": (
        *("x+=1", "x-=-1"),
        *("x-=1", "x+=-1"),
        *("x+=3", "x-=-3"),
        *("x*=2", "x+=x"),
        *("x*=3", "x=3*x"),
        *("x=-x", "x*=-1"),
    ),
    "list": (
        *("x.reverse()", "x[:]=x[::-1]"),
        *("x.append(x.pop(0))", "x[:]=x[1:]+x[:1]"),
        *("x.insert(0,x.pop())", "x[:]=x[-1:]+x[:-1]"),
        *("x.pop()", "del(x[-1])"),
        *("x.pop(0)", "del(x[0])"),
        *("x.append(x[0])", "x+=x[:1]"),
    ),
    "items": tuple(f"x[{place}]{step}" for place in range(3) for step in ("+=1", "-=1", "+=2", "-=2")),
}
"""The statements of a body, by the kind of the function; for int and list, each line has two spellings of one step. A
completion with any other word is wrong, so no other code ever runs.
"""

# What identifies a function: its values at these arguments. All statements on integers are of the form a x + b.
_PROBES: Mapping[str, tuple[Any, ...]] = {"int": (0, 1), "list": ([0, 1, 2, 3],), "items": ([0, 0, 0],)}
# The arguments of the generated tests.
_INPUTS: Mapping[str, tuple[Any, ...]] = {
    "int": (0, 1, -7, 40, 1001),
    "list": ([10, 20, 30, 40], [7, 5, 5, -3]),
    "items": ([10, 20, 30], [-4, 0, 9]),
}
_MOST_ITEMS = 6

Function = tuple[Any, ...]
"""The values of a function at the probes; lists as tuples."""


@dataclass(frozen=True)
class Programs(Task):
    """`Programs` asks for the body of a function of an integer or a list (docs/tasks.md)."""

    max_statements: int = 6
    """Most statements in a right body."""
    largest: int = 24
    """Largest absolute number in a prompt."""
    kinds: tuple[str, ...] = ("items",)
    """What the functions do: `items` adds to the items of a list, `int` computes with an integer, `list` moves, drops
    and repeats the items of a list.
    """
    eval_functions: int = 256
    """Number of functions that are kept for evaluation."""
    train_functions: int | None = 128
    """Number of the other functions that are trained on; none for all of them."""
    train_statements: int = 3
    """Most statements that the shortest body of a training function may have."""
    split_seed: int = 0
    """Seed that decides which functions are kept for evaluation."""

    def __post_init__(self) -> None:
        require(1 <= self.max_statements <= 8, "task.max_statements", self.max_statements, "from 1 to 8")
        require(self.largest >= 1, "task.largest", self.largest, "at least 1")
        known = bool(self.kinds) and set(self.kinds) <= set(STATEMENTS)
        require(known, "task.kinds", self.kinds, f"a list of {', '.join(STATEMENTS)}")
        if not 0 < self.eval_functions < len(self._functions):
            raise InvalidValue("task.eval_functions", self.eval_functions, f"from 1 to {len(self._functions) - 1}")
        if not self._train:
            raise InvalidValue("task.train_functions", self.train_functions, "such that a function is left to train on")

    @property
    def max_tokens(self) -> int:
        """Return the largest length of a completion, tokens, with the end-of-sequence token."""
        return self.max_statements + 1

    def train_problem(self, seed: int, index: int) -> Problem:
        """Return a training function; each round through all of them has a new random order."""
        lap, place = divmod(index, len(self._train))
        return self._problem(*self._train[_order(len(self._train), seed, lap)[place]])

    def eval_problems(self, count: int) -> list[Problem]:
        """Return the problems of the first `count` evaluation functions."""
        if count > self.eval_functions:
            raise InvalidValue("evaluation.prompts", count, f"at most task.eval_functions ({self.eval_functions})")
        return [self._problem(*function) for function in self._functions[:count]]

    def reward(self, problem: Mapping[str, Any], text: str, truncated: bool) -> float:
        """Return 1.0 if the body passes all tests of problem["tests"] within the limit, else 0.0."""
        words = text.split()
        kind = problem["kind"]
        if truncated or not 0 < len(words) <= self.max_statements or not set(words) <= set(STATEMENTS[kind]):
            return 0.0
        return float(all(_value(words, given) == wanted for given, wanted in problem["tests"]))

    def solution(self, problem: Mapping[str, Any]) -> str | None:
        """Return a shortest body."""
        kind = problem["kind"]
        bodies: dict[Function, tuple[str, ...]] = {_start(kind): ()}
        wanted = tuple(map(_frozen, problem["probes"]))
        for _ in range(self.max_statements):
            for function, body in list(bodies.items()):
                for statement in STATEMENTS[kind]:
                    after = _after(function, statement)
                    if after is not None:
                        bodies.setdefault(after, (*body, statement))
            if bodies.get(wanted):
                return " ".join(bodies[wanted])
        return None

    @property
    def pretraining_key(self) -> Mapping[str, Any]:
        """Return all on which `pretraining_examples` depends."""
        fields = {name: getattr(self, name) for name in ("max_statements", "largest", "kinds")}
        return {**fields, "statements": {kind: STATEMENTS[kind] for kind in self.kinds}}

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Return every word of a prompt or completion."""
        numbers = map(str, range(-self.largest, self.largest + 1))
        return (*sum(STATEMENTS.values(), ()), *STATEMENTS, *numbers, *LETTERS, SEPARATOR)

    def pretraining_examples(self, seed: int) -> Iterator[tuple[str, str]]:
        """Yield (prompt, completion) of random bodies for ever; the prompt asks for what the body computes."""
        rng = random.Random(seed)
        while True:
            kind = rng.choice(self.kinds)
            words = [rng.choice(STATEMENTS[kind]) for _ in range(rng.randint(1, self.max_statements))]
            function: Function | None = _start(kind)
            for word in words:
                function = function and _after(function, word)
            if function is not None and self._asked(kind, function):
                yield self._prompt(kind, function), " ".join(words)

    def program(self, text: str) -> str:
        """Return the completion as the Python function that it stands for."""
        return source(text.split())

    def code_problem(self, problem: Mapping[str, Any]) -> CodeProblem:
        """Return the tests of a problem as those of any other program, to judge it in a sandbox."""
        return CodeProblem(tuple(Call("f", repr(given), repr(wanted)) for given, wanted in problem["tests"]))

    def ceiling(self) -> float:
        """Return the highest entropy of a policy that solves every training prompt, nats per token (docs/tasks.md)."""
        counts = torch.zeros(self.max_statements, len(self._train), dtype=torch.int64)
        for place, (kind, function) in enumerate(self._train):
            for length, level in enumerate(_bodies(kind, self.max_statements)):
                counts[length, place] = level.get(function, 0)
        return ceiling(counts)

    def _asked(self, kind: str, function: Function) -> bool:
        """Return whether a function can be asked for: it is no identity and its numbers are words."""
        if function == _start(kind):
            return False
        if kind == "list":
            return bool(function[0])
        if kind == "items":
            return bool(max(map(abs, function[0])) <= self.largest)
        return max(map(abs, _coefficients(function))) <= self.largest

    def _prompt(self, kind: str, function: Function) -> str:
        if kind == "int":
            return f"int {' '.join(map(str, _coefficients(function)))} {SEPARATOR}"
        words = [LETTERS[item] for item in function[0]] if kind == "list" else map(str, function[0])
        return f"{kind} {' '.join(words)} {SEPARATOR}"

    def _problem(self, kind: str, function: Function) -> Problem:
        tests = [(given, _expected(kind, function, given)) for given in _INPUTS[kind]]
        data = {"kind": kind, "tests": tests, "probes": list(function)}
        prompt = self._prompt(kind, function)
        return Problem(f"programs-{prompt.removesuffix(f' {SEPARATOR}').replace(' ', '-')}", prompt, data)

    @cached_property
    def _shortest(self) -> dict[tuple[str, Function], int]:
        """Return every function that can be asked for, with the statements of its shortest body."""
        found: dict[tuple[str, Function], int] = {}
        for kind in self.kinds:
            for length, level in enumerate(_bodies(kind, self.max_statements), 1):
                for function in level:
                    if self._asked(kind, function):
                        found.setdefault((kind, function), length)
        return found

    @cached_property
    def _functions(self) -> list[tuple[str, Function]]:
        functions = sorted(self._shortest)
        random.Random(self.split_seed).shuffle(functions)
        return functions

    @cached_property
    def _train(self) -> list[tuple[str, Function]]:
        rest = self._functions[self.eval_functions :]
        return [key for key in rest if self._shortest[key] <= self.train_statements][: self.train_functions]


def source(statements: list[str]) -> str:
    """Return a function of these statements as Python."""
    return "\n    ".join(["def f(x):", *statements, "return x"]) + "\n"


@lru_cache(maxsize=64)
def _statement(statement: str) -> Callable[[Any], Any]:
    """Return a statement of `STATEMENTS` as a function. No other text reaches this."""
    assert any(statement in known for known in STATEMENTS.values())
    names: dict[str, Any] = {}
    exec(source([statement]), names)
    found: Callable[[Any], Any] = names["f"]
    return found


def _value(statements: list[str], given: Any) -> Any:
    """Return the value of a body, or None if it raises."""
    value = list(given) if isinstance(given, list) else given
    try:
        for statement in statements:
            value = _statement(statement)(value)
    except IndexError:
        return None
    return value


def _after(function: Function, statement: str) -> Function | None:
    """Return the function with one more statement; None if the statement fails or the list grows too long."""
    values = [_value([statement], _thawed(value)) for value in function]
    if any(value is None or (isinstance(value, list) and len(value) > _MOST_ITEMS) for value in values):
        return None
    return tuple(map(_frozen, values))


@lru_cache(maxsize=4)
def _bodies(kind: str, most: int) -> list[dict[Function, int]]:
    """Return, for n = 1..most statements, the number of bodies of each function."""
    levels, level = [], {_start(kind): 1}
    for _ in range(most):
        following: dict[Function, int] = {}
        for function, count in level.items():
            for statement in STATEMENTS[kind]:
                after = _after(function, statement)
                if after is not None:
                    following[after] = following.get(after, 0) + count
        levels.append(following)
        level = following
    return levels


def _start(kind: str) -> Function:
    return tuple(map(_frozen, _PROBES[kind]))


def _coefficients(function: Function) -> tuple[int, int]:
    """Return a and b of a x + b."""
    return function[1] - function[0], function[0]


def _expected(kind: str, function: Function, given: Any) -> Any:
    if kind == "list":
        return [given[item] for item in function[0]]
    if kind == "items":
        return [item + step for item, step in zip(given, function[0], strict=True)]
    factor, offset = _coefficients(function)
    return factor * given + offset


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _thawed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@lru_cache(maxsize=8)
def _order(size: int, seed: int, lap: int) -> list[int]:
    return random.Random(f"{seed}/{lap}").sample(range(size), size)
