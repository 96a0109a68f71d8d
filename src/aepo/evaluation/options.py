"""This module holds the settings of `aepo evaluate` and the passes that follow from them.

It imports nothing heavy, because the command line needs it for its help.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from aepo.engines.positions import OverLength
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
    humaneval, mbpp), or files (default: those of --data, or the task)."""
    data: Path | None = None
    """A folder that holds the benchmarks' files (aime24.jsonl, ...), or one file of problems and answers
    (default: the benchmarks' files are downloaded from the hub)."""
    task: str | None = None
    """The evaluation problems of a task instead: paths, countdown, programs, gym or data (default: the run's task)."""
    set: tuple[str, ...] = field(default=())
    """Settings of --task, such as task.dataset=chain_sum (default: the task's own)."""
    n: int = 32
    """Number of completions of each problem."""
    k: tuple[int, ...] = ()
    """Report pass@k and maj@k at these k, each at most n (default: 1, 2, 4, ... up to n, at most 1024)."""
    entropy: int | None = None
    """Measure the entropy instead, on this many prompts of the training stream, of every checkpoint if the model is a
    run (default: pass@k and maj@k)."""
    temperature: float | None = None
    """One pass at this temperature, such as 0.6 (default: two passes, pass@1 at T = 0.1, top-p 0.95, and pass@k at
    T = 1, top-p 1)."""
    top_p: float | None = None
    """One pass with this top-p (and at T = 1 without --temperature; default: see --temperature)."""
    top_k: int | None = None
    """One pass from this many most probable tokens (default: all of them)."""
    min_p: float | None = None
    """One pass without tokens below this share of the largest probability (default: none is left out)."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion; they stay in it (default: those of the run, if the model is a run's)."""
    system_prompt: str | None = None
    """System turn of chat prompts that have none of their own, with --benchmark and --data (default: none)."""
    chat_template: str | None = None
    """File of a Jinja chat template that replaces the model's own, with --benchmark and --data (default: the
    model's own)."""
    chat_template_kwargs: str | None = None
    """Arguments of the chat template, with --benchmark and --data: a JSON object such as {"enable_thinking": false}
    (default: none)."""
    prompt: str | None = None
    """Prompt style of benchmarks and files: qwen-boxed, code, ... (default: qwen25-math-cot; qwen-code for
    programs)."""
    max_tokens: int | None = None
    """Longest completion, in tokens (default: 8192; for a task its own limit)."""
    grader: str | None = None
    """Grader of benchmarks and files: math, qwen, exact or code (default: math; code for humaneval and mbpp). A task
    has its own verifier."""
    out: Path | None = None
    """The folder for samples.jsonl and evaluation.json; an evaluation that was stopped continues there
    (default: evaluation-NAMES in the run's folder, or in runs/)."""
    seed: int = 0
    """Seed of every draw."""
    limit: int | None = None
    """Number of problems: the first ones of each benchmark or file (default: all of them), or as many of a task
    (default: 100, or as many as the run evaluates on)."""
    max_rows: int | None = None
    """Largest number of completions that are decoded at once; it limits memory (default: no limit)."""
    over_length: OverLength | None = None
    """refuse, or cut: what happens where a prompt and the longest completion have more tokens than the model has
    positions (default: the run's own setting, or refuse)."""
    device: str = "auto"
    """auto, cpu or cuda."""

    def check(self) -> None:
        """Check the settings.

        Raises:
            InvalidValue: A value cannot work. The first such value is named.
        """
        require(self.n >= 1, "--n", self.n, "at least 1")
        require(
            self.entropy is None or self.entropy >= 1, "--entropy", self.entropy, "at least 1 prompt (1024 is enough)"
        )
        for k in self.k:
            require(1 <= k <= self.n, "--k", k, f"from 1 to n = {self.n} (pass@k needs at least k samples)")
        positive = self.temperature is None or 0 < self.temperature < math.inf
        require(positive, "--temperature", self.temperature, "positive (0.1 is nearly greedy)")
        require(self.top_p is None or 0 < self.top_p <= 1, "--top-p", self.top_p, "in (0, 1]")
        require(self.top_k is None or self.top_k >= 1, "--top-k", self.top_k, "at least 1")
        require(self.min_p is None or 0 <= self.min_p < 1, "--min-p", self.min_p, "in [0, 1)")
        require(all(self.stop), "--stop", self.stop, "texts that are not empty")
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
        """Return the two passes of the AEPO paper, or one pass if the temperature or a cut is set."""
        ks = tuple(sorted(set(self.k))) or powers_of_two(min(self.n, LARGEST_K))
        if any(given is not None for given in (self.temperature, self.top_p, self.top_k, self.min_p)):
            return (Pass(self.temperature or 1.0, self.top_p or 1.0, self.n, ks, self.top_k, self.min_p or 0.0),)
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
    top_k: int | None = None
    """Number of most probable tokens that are kept; None keeps the whole vocabulary."""
    min_p: float = 0.0
    """Share of the largest probability below which tokens are cut off."""

    @property
    def label(self) -> str:
        """Return the name of the pass in files and tables."""
        further = [f"top-k={self.top_k}"] * (self.top_k is not None) + [f"min-p={self.min_p:g}"] * (self.min_p > 0)
        return ", ".join([f"T={self.temperature:g}", f"top-p={self.top_p:g}", *further])

    def settings(self) -> dict[str, float]:
        """Return how the pass samples, as plain JSON data, with top-k and min-p where they cut."""
        further = {"top_k": self.top_k} if self.top_k is not None else {}
        lowest = {"min_p": self.min_p} if self.min_p > 0 else {}
        return {"temperature": self.temperature, "top_p": self.top_p, **further, **lowest, "n": self.n}


def powers_of_two(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... up to `largest`."""
    return tuple(2**i for i in range(largest.bit_length()))
