"""The one internal form of all code problems: code that runs first, and a list of tests."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from aepo.errors import InvalidValue


@dataclass(frozen=True)
class Call:
    """`Call` is a test that calls a function and compares the returned value outside of the sandbox."""

    function: str
    """The name of the function, or an expression for it."""
    arguments: str
    """The arguments as Python literals, as they stand between the parentheses of the call."""
    value: str
    """The expected value as a Python literal."""
    loose: bool = False
    """Whether the expected value is from JSON: a tuple then equals a list, and a decimal number has a tolerance."""
    method: bool = False
    """Whether the function may be a method of a class `Solution` instead, as on sites of contests."""
    either: bool = False
    """Whether the expected value is a list of one item that may also be returned alone (APPS)."""


@dataclass(frozen=True)
class Stdio:
    """`Stdio` is a test that runs the candidate as a script and compares its standard output outside of the sandbox."""

    stdin: str
    """The text of standard input."""
    stdout: str
    """The expected text of standard output."""


@dataclass(frozen=True)
class Program:
    """`Program` is a test that runs Python text after the candidate, in the same process.

    It is the weak mode: a hostile candidate can make such a test pass.
    """

    text: str
    """The text, with asserts."""
    function: str = ""
    """A function of the text that is called at the end, such as a test function of pytest; or none."""


Test = Call | Stdio | Program
_KINDS: dict[str, type[Call] | type[Stdio] | type[Program]] = {"call": Call, "stdio": Stdio, "program": Program}
_NAMES = {cls: name for name, cls in _KINDS.items()}


@dataclass(frozen=True)
class CodeProblem:
    """`CodeProblem` is all that is needed to judge a candidate."""

    tests: tuple[Test, ...]
    """The tests; a candidate is right if it passes all of them."""
    before: str = ""
    """Trusted code that runs before the candidate, such as imports and helper functions."""
    stub: str = ""
    """The beginning of a function that a completion may continue (HumanEval); or none."""
    entry: str = ""
    """The name of the function that `stub` begins."""

    @property
    def weak(self) -> bool:
        """Return whether a test runs inside of the candidate's process."""
        return any(isinstance(test, Program) for test in self.tests)

    def to_json(self) -> str:
        """Return the problem as JSON text."""
        tests = [{"kind": _NAMES[type(test)], **asdict(test)} for test in self.tests]
        return json.dumps({**asdict(self), "tests": tests})

    @classmethod
    def from_json(cls, text: str) -> CodeProblem:
        """Return the problem that `to_json` wrote.

        Raises:
            InvalidValue: The text is not such JSON.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            tests = tuple(_test(item) for item in data.pop("tests"))
            return cls(tests, **data)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise InvalidValue("answer", shown, "the tests of a code problem") from None


def _test(item: dict[str, Any]) -> Test:
    return _KINDS[item.pop("kind")](**item)
