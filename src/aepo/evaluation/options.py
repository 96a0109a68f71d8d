"""What an evaluation can be told, and the ways to sample that follow from it. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from aepo.errors import require

LARGEST_K = 1024
# pass@1 at a low temperature needs no more samples than this to be steady.
COLD_SAMPLES = 32


@dataclass(frozen=True)
class Options:
    """The settings of `aepo evaluate`; docs/evaluation.md has the defaults' sources."""

    model: str
    """A folder in Hugging Face format, a name on the hub, a run folder or one of its checkpoints, or `builtin`."""
    benchmark: tuple[str, ...] = ()
    """Benchmarks by name (aime24, aime25, amc23, math500, gsm8k, minerva, olympiadbench, college_math), or files."""
    data: Path | None = None
    """A folder that holds the benchmarks' files (aime24.jsonl, ...), or one file of problems and answers."""
    task: str | None = None
    """A task's evaluation problems instead: paths, countdown, gym, data (a run's own task is the default)."""
    set: tuple[str, ...] = field(default=())
    """Settings of --task, as often as needed: --set task.dataset=chain_sum."""
    n: int = 32
    """Completions of each problem."""
    k: tuple[int, ...] = ()
    """Report pass@k and maj@k at these k, none above n (default: 1, 2, 4, ... up to n, at most 1024)."""
    temperature: float | None = None
    """One pass at this temperature, instead of pass@1 at T = 0.1, top-p 0.95 and pass@k at T = 1, top-p 1."""
    top_p: float | None = None
    """One pass with this top-p (and T = 1 unless --temperature says otherwise)."""
    prompt: str | None = None
    """How a benchmark's problem becomes a prompt: qwen25-math-cot (default), qwen-boxed, think, boxed, chat, ..."""
    max_tokens: int | None = None
    """Longest completion (default: 8192; for a task its own limit)."""
    grader: str | None = None
    """math (default), qwen or exact, for benchmarks and files; a task has its own verifier."""
    out: Path | None = None
    """The folder for samples.jsonl and evaluation.json; one that was cut short is gone on with."""
    seed: int = 0
    """Decides every draw."""
    limit: int | None = None
    """Only the first problems (of a task: how many; default 100, or what the run evaluates on)."""
    max_rows: int | None = None
    """Completions decoded at once; bounds memory (default: all of a chunk)."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Raise `InvalidValue` for the first value that cannot work."""
        require(self.n >= 1, "--n", self.n, "at least 1")
        for k in self.k:
            require(1 <= k <= self.n, "--k", k, f"from 1 to n = {self.n} (pass@k needs at least k samples)")
        heat = self.temperature
        require(heat is None or 0 < heat < math.inf, "--temperature", heat, "positive (0.1 is nearly greedy)")
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
        """The paper's two, or the one that is asked for."""
        ks = tuple(sorted(set(self.k))) or powers_of_two(min(self.n, LARGEST_K))
        if self.temperature is not None or self.top_p is not None:
            return (Pass(self.temperature or 1.0, self.top_p or 1.0, self.n, ks),)
        return Pass(0.1, 0.95, min(self.n, COLD_SAMPLES), (1,)), Pass(1.0, 1.0, self.n, ks)


@dataclass(frozen=True)
class Pass:
    """One way to sample: `n` completions of each problem, reported at each of `ks`."""

    temperature: float
    top_p: float
    n: int
    ks: tuple[int, ...]

    @property
    def label(self) -> str:
        """Its name in files and tables."""
        return f"T={self.temperature:g}, top-p={self.top_p:g}"


def powers_of_two(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `largest`."""
    return tuple(2**i for i in range(largest.bit_length()))
