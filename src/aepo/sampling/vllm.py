"""Sampling with vLLM: an engine that is given the newest weights before a step; see docs/sampling.md."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from aepo.errors import require
from aepo.sampling.base import Sampler
from aepo.types import Completion, Request

# vLLM draws colder requests at this temperature, or greedily, without an error.
COLDEST = 0.01
# Most completions under one seed; vLLM refuses more than 16 384.
PART = 1024
TMPFS = Path("/dev/shm")


class Saved(Protocol):
    """What `refresh` needs of a policy; `aepo.model.policy.Policy` has it."""

    model: Any

    def save_merged(self, folder: Path) -> None:
        """A whole model in Hugging Face format (safetensors), an adapter added to its weights."""


@dataclass(frozen=True)
class Job:
    """`count` completions of one prompt, as vLLM is asked for them. Completion i is drawn with seed + i."""

    prompt: tuple[int, ...]
    count: int
    temperature: float
    top_p: float
    max_tokens: int
    end: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Answer:
    """One completion: its tokens, their log-probabilities, and whether one of the end tokens ended it."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ended: bool


class Engine(ABC):
    """A vLLM engine, and the weights that it has. Several samplers may share one.

    scratch: the folder in which `refresh` writes weights; none: memory where they find room there, else disk.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._parent = scratch
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together."""

    @abstractmethod
    def generate(self, jobs: Sequence[Job]) -> list[list[Answer]]:
        """The answers of each job, in the jobs' order."""

    @abstractmethod
    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors). It must stay as it is until the next update."""

    @abstractmethod
    def close(self) -> None:
        """Let the engine go; what was started here ends."""

    def refresh(self, policy: Saved) -> None:
        """Take the policy's weights, by way of a temporary folder."""
        old, self._scratch = self._scratch, self._new_scratch(policy.model)
        policy.save_merged(Path(self._scratch.name))
        self.update(Path(self._scratch.name))
        if old is not None:
            old.cleanup()

    def _new_scratch(self, model: Any) -> tempfile.TemporaryDirectory[str]:
        if self._parent is not None:
            return tempfile.TemporaryDirectory(prefix="aepo-weights-", dir=self._parent)
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        roomy = TMPFS.is_dir() and os.access(TMPFS, os.W_OK) and shutil.disk_usage(TMPFS).free > 2 * size
        return tempfile.TemporaryDirectory(prefix="aepo-weights-", dir=TMPFS if roomy else None)


class VLLMSampler(Sampler):
    """Samples with the weights that the engine was last given, by `refresh` or `engine.update`.

    eos_token_ids: each of them ends a completion; none at all lets every completion run to the limit. top_p: draw
    from the smallest set of tokens whose probability (at the request's temperature) reaches it.
    """

    def __init__(self, engine: Engine, *, eos_token_ids: Sequence[int], top_p: float = 1.0) -> None:
        require(0 < top_p <= 1, "top_p", top_p, "in (0, 1]")
        self.engine = engine
        self.eos_token_ids = tuple(eos_token_ids)
        self.top_p = top_p

    def refresh(self, policy: Saved) -> None:
        """Give the engine the policy's present weights."""
        self.engine.refresh(policy)

    def close(self) -> None:
        """End the engine, for all samplers that share it."""
        self.engine.close()

    def at_top_p(self, top_p: float) -> VLLMSampler:
        """The same sampler, on the same engine, with another top-p cut."""
        return VLLMSampler(self.engine, eos_token_ids=self.eos_token_ids, top_p=top_p)

    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw every request's completions in one call, a temperature per request; see `Sampler.sample`.

        The generator gives one seed per request (one per 1 024 of its completions), and vLLM draws from those:
        the same generator state, weights and requests give the same completions, but for draws so close to a
        boundary that float noise decides, since rows are batched as the engine finds time.

        Raises:
            ValueError: an empty prompt, a temperature under 0.01 or not finite, a temperature per token, a negative
                count, max_tokens below 1, a prompt that leaves no room for max_tokens.
            RuntimeError: the model's logits are not finite; the engine cannot be had.
        """
        _check(requests, max_tokens)
        parts = [
            (request, min(PART, request.count - first))
            for request in requests
            for first in range(0, request.count, PART)
        ]
        if not parts:
            return []
        self._check_room(requests, max_tokens)
        seeds = torch.randint(2**62, (len(parts),), generator=generator, device=generator.device).tolist()
        jobs = [
            Job(r.prompt.tokens, count, r.temperature, self.top_p, max_tokens, self.eos_token_ids, seed)
            for (r, count), seed in zip(parts, seeds, strict=True)
        ]
        answers = self.engine.generate(jobs)
        if not all(math.isfinite(logprob) for some in answers for answer in some for logprob in answer.logprobs):
            # Keys and values that are not finite stay in the engine's memory and spoil what it makes with good weights.
            self.engine.close()
            raise RuntimeError("vLLM gave log-probabilities that are not finite; the weights have probably diverged")
        return [
            _completion(request, answer) for (request, _), some in zip(parts, answers, strict=True) for answer in some
        ]

    def _check_room(self, requests: Sequence[Request], max_tokens: int) -> None:
        longest, limit = max(len(request.prompt.tokens) for request in requests), self.engine.max_model_len
        wanted = f"at most {limit - longest} after a prompt of {longest} tokens (the engine's max_model_len is {limit})"
        require(longest + max_tokens <= limit, "max_tokens", max_tokens, wanted)


def _completion(request: Request, answer: Answer) -> Completion:
    return Completion(
        prompt=request.prompt,
        group=request.group,
        temperature=request.temperature,
        tokens=answer.tokens,
        logprobs=answer.logprobs,
        truncated=not answer.ended,
    )


def _check(requests: Sequence[Request], max_tokens: int) -> None:
    require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
    for request in requests:
        temperature, prompt = request.temperature, request.prompt
        wanted = f"a finite number, at least {COLDEST} with vLLM"
        require(COLDEST <= temperature < math.inf, "temperature", temperature, wanted)
        per_token = request.token_temperature
        require(per_token is None, "token_temperature", per_token, 'none with vLLM; sampling.engine = "hf" has it')
        require(request.count >= 0, "count", request.count, "at least 0")
        require(len(prompt.tokens) > 0, f"prompt {prompt.id!r} tokens", prompt.tokens, "at least one token")
