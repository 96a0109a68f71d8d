"""What passes from the readers to the checks, and out of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Point = tuple[int, float]
Series = tuple[Point, ...]
Confidence = Literal["sure", "likely", "possible"]
# exact: the distribution's own, per token. sampled: mean of -log pi of the tokens drawn. sum: over a completion.
EntropyKind = Literal["exact", "sampled", "sum", "unknown"]


@dataclass(frozen=True)
class Entropy:
    """What a trainer's entropy key stands for. says: one clause. then: what to do about it; empty where all is well."""

    kind: EntropyKind
    says: str
    then: str = ""


@dataclass(frozen=True)
class Log:
    """One run's measurements under this project's names (docs/doctor.md lists them).

    framework: who wrote it. source: the file. series: name -> ((step, value), ...) by rising step; values can be NaN or
    infinite. keys: name -> the key in the file. entropy: what the entropy series is. resumes: steps at which the log
    shows (or the caller says) that the run was taken up again. settings: of our own runs, their config.toml.
    """

    framework: str
    source: str
    series: Mapping[str, Series]
    keys: Mapping[str, str] = field(default_factory=dict)
    entropy: Entropy = Entropy("unknown", "its meaning is not documented")
    resumes: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def steps(self) -> tuple[int, int]:
        """The first and the last step."""
        steps = [step for points in self.series.values() for step, _ in points]
        return min(steps), max(steps)

    def get(self, name: str) -> Series:
        """The series of this name; empty if the log has none."""
        return self.series.get(name, ())


@dataclass(frozen=True)
class Finding:
    """Something to know about a run.

    step: where it shows first; None where it holds for the whole log. evidence: a sentence with its numbers.
    serious: the run is harmed (as opposed to: a number is to be read with care).
    """

    kind: str
    step: int | None
    evidence: str
    confidence: Confidence
    advice: str
    serious: bool = True

    @property
    def counts(self) -> bool:
        """Whether it decides the exit code."""
        return self.serious and self.confidence != "possible"
