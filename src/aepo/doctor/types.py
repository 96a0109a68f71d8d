"""The types that the readers, the checks and the report share."""

from __future__ import annotations

import operator
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, overload

# (step, value).
Point = tuple[int, float]
# Points by rising step: a tuple, or a `Series`.
LogSeries = Sequence[Point]
# One row of a log: key -> number.
LogRow = Mapping[str, float]
Confidence = Literal["sure", "likely", "possible"]
# exact: the entropy of the distribution, per token. sampled: the mean of -log pi over the sampled tokens. sum: the sum
# over the tokens of a completion. unknown: the trainer does not document the number.
EntropyKind = Literal["exact", "sampled", "sum", "unknown"]


class Series(Sequence[Point]):
    """`Series` is a sequence of points that takes 16 bytes a point, and 8 where it shares its steps with another.

    A tuple of tuples takes about 100. It compares equal to a sequence of the same points; a slice of it is a tuple.
    """

    __slots__ = ("steps", "values")

    def __init__(self, steps: array[int], values: array[float]) -> None:
        self.steps, self.values = steps, values

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> Point: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Point, ...]: ...
    def __getitem__(self, index: int | slice) -> Point | tuple[Point, ...]:
        if isinstance(index, slice):
            return tuple(zip(self.steps[index], self.values[index], strict=True))
        return self.steps[index], self.values[index]

    def __iter__(self) -> Iterator[Point]:
        return zip(self.steps, self.values, strict=True)

    def __reversed__(self) -> Iterator[Point]:
        return zip(reversed(self.steps), reversed(self.values), strict=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(operator.eq, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return repr(tuple(self))


@dataclass(frozen=True)
class EntropyMeaning:
    """`EntropyMeaning` says what a trainer measures under one entropy key."""

    kind: EntropyKind
    """How the trainer computes the number."""
    says: str
    """One clause that describes the number; it can follow the word "is"."""
    then: str = ""
    """What the reader should do about it; empty if the number needs no care."""


@dataclass(frozen=True)
class Log:
    """`Log` holds the measurements of one run under the names of this package (docs/doctor.md lists them)."""

    framework: str
    """The name of the trainer that wrote the log."""
    source: str
    """The path of the file, and the name of the run if the file holds several runs."""
    series: Mapping[str, LogSeries]
    """Name -> ((step, value), ...) by rising step. Values can be NaN or infinite."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """Name -> the key of that measurement in the file."""
    entropy: EntropyMeaning = EntropyMeaning("unknown", "its meaning is not documented")
    """What the series `entropy` measures."""
    resumes: tuple[int, ...] = ()
    """Steps at which the run was resumed: those that the log shows and those that the caller gives."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The contents of `config.toml` if this package wrote the log, else empty."""
    notes: tuple[str, ...] = ()
    """Sentences about what was left out of the file or assumed when it was read."""

    @property
    def steps(self) -> tuple[int, int]:
        """Return the first and the last step."""
        held = [points for points in self.series.values() if points]
        return min(points[0][0] for points in held), max(points[-1][0] for points in held)

    def get(self, name: str) -> LogSeries:
        """Return the series of this name; empty if the log has none."""
        return self.series.get(name, ())


@dataclass(frozen=True)
class Finding:
    """`Finding` describes one problem of a run, or one number of its log that needs care."""

    kind: str
    """The name of the problem, such as `collapse`."""
    step: int | None
    """The first step at which the problem shows; None if it holds for the whole log."""
    evidence: str
    """A sentence with the numbers that show the problem."""
    confidence: Confidence
    """How sure the check is."""
    advice: str
    """What the reader should do."""
    serious: bool = True
    """True if the problem harms the run; False if a number only needs care when it is read."""

    @property
    def counts(self) -> bool:
        """Return whether the finding sets the exit code to 1."""
        return self.serious and self.confidence != "possible"
