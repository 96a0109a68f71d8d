"""This module holds the settings of `aepo evaluate` and the passes that follow from them.

It imports nothing heavy, because the command line needs it for its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from aepo.errors import require

# The largest k that is reported by default.
LARGEST_K = 1024
# Completions of each problem in the pass at a low temperature: pass@1 is steady with so many.
COLD_SAMPLES = 32


@dataclass(frozen=True)
class Options:
    """`Options` holds the settings of `aepo evaluate`. docs/evaluation.md gives the sources of the defaults."""

    model: str
    """A folder in Hugging Face format, a name on the hub, a run folder or one of its checkpoints, or `builtin`."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks by name (aime24, aime25, amc23, math500, gsm8k, minerva, olympiadbench, college_math,
    humaneval, mbpp), or files."""
    data: Path | None = None
    """A folder that holds the benchmarks' files (aime24.jsonl, ...), or one file of problems and answers."""
    task: str | None = None
    """The evaluation problems of a task instead: paths, countdown, programs, gym or data (default: the run's task)."""
    set: tuple[str, ...] = field(default=())
    """Settings of --task, such as task.dataset=chain_sum."""
    n: int = 32
    """Number of completions of each problem."""
    k: tuple[int, ...] = ()
    """Report pass@k and maj@k at these k, each at most n (default: 1, 2, 4, ... up to n, at most 1024)."""
    temperature: float | None = None
    """One pass at this temperature, instead of pass@1 at T = 0.1, top-p 0.95 and pass@k at T = 1, top-p 1."""
    top_p: float | None = None
    """One pass with this top-p (and at T = 1 without --temperature)."""
    prompt: str | None = None
    """Prompt style of benchmarks and files: qwen25-math-cot (default; qwen-code for programs), qwen-boxed, code, ..."""
    max_tokens: int | None = None
    """Longest completion, in tokens (default: 8192; for a task its own limit)."""
    grader: str | None = None
    """Grader of benchmarks and files: math (default; code for humaneval and mbpp), qwen, exact or code. A task has its
    own verifier.
    """
    out: Path | None = None
    """The folder for samples.jsonl and evaluation.json; an evaluation that was stopped continues there."""
    seed: int = 0
    """Seed of every draw."""
    limit: int | None = None
    """Number of problems: the first ones of each benchmark or file (default: all of them), or as many of a task
    (default: 100, or as many as the run evaluates on)."""
    max_rows: int | None = None
    """Largest number of completions that are decoded at once; it limits memory (default: no limit)."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Check the settings.

        Raises:
            InvalidValue: A value cannot work. The first such value is named.
        """
        require(self.n >= 1, "--n", self.n, "at least 1")
        for k in self.k:
            require(1 <= k <= self.n, "--k", k, f"from 1 to n = {self.n} (pass@k needs at least k samples)")
        positive = self.temperature is None or 0 < self.temperature < math.inf
        require(positive, "--temperature", self.temperature, "positive (0.1 is nearly greedy)")
        require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "in (0, 1]")
        require(self.max_tokens is None or self.max_tokens >= 1, "--max-tokens", self.max_tokens, "at least 1")
        require(self.limit is None or self.limit >= 1, "--limit", self.limit, "at least 1")
        require(self.max_rows is None or self.max_rows >= 1, "--max-rows", self.max_rows, "at least 1")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")
        require(self.device in ("auto", "cpu", "cuda"), "--device", self.device, "auto, cpu or cuda")
        from_task = self.task is not None
        require(from_task or not self.set, "--set", self.set, "used with --task, whose settings it changes")
        both = from_task and (bool(self.benchmark) or self.data is not None)
        require(not both, "--task", self.task, "without --benchmark and --data: problems come from one of them")

    def passes(self) -> tuple[Pass, ...]:
        """Return the two passes of the AEPO paper, or one pass if `temperature` or `top_p` is set."""
        ks = tuple(sorted(set(self.k))) or powers_of_two(min(self.n, LARGEST_K))
        if self.temperature is not None or self.top_p is not None:
            return (Pass(self.temperature or 1.0, self.top_p or 1.0, self.n, ks),)
        return Pass(0.1, 0.95, min(self.n, COLD_SAMPLES), (1,)), Pass(1.0, 1.0, self.n, ks)


@dataclass(frozen=True)
class Pass:
    """`Pass` is one way to sample the problems."""

    temperature: float
    """The sampling temperature."""
    top_p: float
    """The probability mass that is kept; 1 keeps the whole vocabulary."""
    n: int
    """Number of completions of each problem."""
    ks: tuple[int, ...]
    """The k at which pass@k and maj@k are reported, in rising order."""

    @property
    def label(self) -> str:
        """Return the name of the pass in files and tables."""
        return f"T={self.temperature:g}, top-p={self.top_p:g}"


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to `largest`."""
    return tuple(2**i for i in range(largest.bit_length()))
