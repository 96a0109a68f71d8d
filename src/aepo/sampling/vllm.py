"""Sampling with vLLM, which takes the newest weights before each step; see docs/sampling.md.

`VLLMSampler` is the sampler. A `VLLMBackend` runs vLLM for it: in a process of its own (`aepo.sampling.vllm_local`) or
behind HTTP (`aepo.sampling.vllm_server`).
"""

from __future__ import annotations

import copy
import math
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

import torch

from aepo.engines.positions import Room
from aepo.engines.stops import StopStrings
from aepo.errors import require
from aepo.sampling.base import Sampler
from aepo.sampling.draw import Cuts
from aepo.types import Completion, Request

T = TypeVar("T")

# Least temperature. Below it vLLM raises the temperature or samples greedily, without an error.
COLDEST = 0.01
# Highest temperature that vLLM 0.32 takes.
HOTTEST = 2.0
# Most completions in one request to vLLM, which have one seed; vLLM refuses more than 16 384.
PART = 1024
TMPFS = Path("/dev/shm")


class SavablePolicy(Protocol):
    """`SavablePolicy` lists what `refresh` needs of a policy; `aepo.model.policy.Policy` has it."""

    model: Any

    def save_merged(self, folder: Path) -> None:
        """Save the whole model in Hugging Face format (safetensors), with an adapter added to its weights."""

    def merged_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the names and tensors that `save_merged` writes."""


@dataclass(frozen=True)
class VLLMRequest:
    """`VLLMRequest` asks vLLM for some completions of one prompt."""

    prompt: tuple[int, ...]
    """The tokens of the prompt."""
    count: int
    """The number of completions."""
    temperature: float
    """The sampling temperature."""
    cuts: Cuts
    """What is cut off the distribution."""
    max_tokens: int
    """The largest length of a completion, tokens."""
    end: tuple[int, ...]
    """The tokens that end a completion."""
    seed: int
    """Completion i is drawn with seed + i."""
    stop: tuple[str, ...] = ()
    """The texts that end a completion; vLLM needs the tokenizer for them."""


@dataclass(frozen=True)
class VLLMOutput:
    """`VLLMOutput` holds one completion that vLLM returned."""

    tokens: tuple[int, ...]
    """The tokens of the completion."""
    logprobs: tuple[float, ...]
    """The log-probability of each token, nats."""
    ended: bool
    """True if an end token or a stop string ended the completion, False if the limit did."""


class VLLMBackend(ABC):
    """`VLLMBackend` runs vLLM and gives it new weights. Several samplers may share one backend.

    Args:
        scratch: The folder in which `refresh` writes weights. None takes a folder in memory if the weights fit there
            twice, else the temporary folder on disk.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        self._parent = scratch
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    @property
    @abstractmethod
    def max_model_len(self) -> int:
        """Return the largest number of tokens of a prompt and its completion together."""

    @abstractmethod
    def generate(self, requests: Sequence[VLLMRequest]) -> list[list[VLLMOutput]]:
        """Return the outputs of each request, in the order of the requests."""

    @abstractmethod
    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors). The folder must not change until the next update."""

    @abstractmethod
    def close(self) -> None:
        """End the vLLM process if this backend started it."""

    def refresh(self, policy: SavablePolicy) -> None:
        """Take the policy's weights: save them in a temporary folder and update from it."""
        old, self._scratch = self._scratch, self._new_scratch(policy.model)
        policy.save_merged(Path(self._scratch.name))
        self.update(Path(self._scratch.name))
        if old is not None:
            old.cleanup()

    def _drop_scratch(self) -> None:
        """Remove the folder of older weights."""
        if self._scratch is not None:
            self._scratch.cleanup()
            self._scratch = None

    def _new_scratch(self, model: Any) -> tempfile.TemporaryDirectory[str]:
        if self._parent is not None:
            return tempfile.TemporaryDirectory(prefix="aepo-weights-", dir=self._parent)
        size = sum(weight.numel() * weight.element_size() for weight in model.parameters())
        roomy = TMPFS.is_dir() and os.access(TMPFS, os.W_OK) and shutil.disk_usage(TMPFS).free > 2 * size
        return tempfile.TemporaryDirectory(prefix="aepo-weights-", dir=TMPFS if roomy else None)


def in_thread(call: Callable[[], T]) -> SimpleQueue[Future[T]]:
    """Begin a call in a thread that does not keep the program from ending, and return where its result will be."""
    box: SimpleQueue[Future[T]] = SimpleQueue()
    Thread(target=lambda: box.put(_settled(call)), daemon=True).start()
    return box


def _settled(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
    return future


class VLLMSampler(Sampler):
    """`VLLMSampler` draws completions with vLLM. The weights are those of the last `refresh` or `backend.update`.

    Args:
        backend: Where vLLM runs.
        eos_token_ids: Each of these tokens ends a completion; without any, every completion runs to the limit.
        top_p, top_k, min_p: What is cut off the distribution at the request's temperature; see `Cuts`.
        stop: Texts that end a completion too; None for none. The backend needs the tokenizer for them.
        room: How long a prompt and its completion may be; the default sets no limit.
    """

    def __init__(
        self,
        backend: VLLMBackend,
        *,
        eos_token_ids: Sequence[int],
        top_p: float = 1.0,
        top_k: int | None = None,
        min_p: float = 0.0,
        stop: StopStrings | None = None,
        room: Room = Room(),
    ) -> None:
        self.backend = backend
        self.eos_token_ids = tuple(eos_token_ids)
        self.cuts = Cuts(top_p, top_k, min_p)
        self.stop = stop
        self.room = room

    def refresh(self, policy: SavablePolicy) -> None:
        """Give the backend the policy's present weights."""
        self.backend.refresh(policy)

    def close(self) -> None:
        """Close the backend, for all samplers that share it."""
        self.backend.close()

    def with_cuts(self, cuts: Cuts) -> VLLMSampler:
        """Return a sampler on the same backend with other cuts."""
        sampler = copy.copy(self)
        sampler.cuts = cuts
        return sampler

    def sample(self, requests: Sequence[Request], *, max_tokens: int, generator: torch.Generator) -> list[Completion]:
        """Draw the completions of all requests in one call, each at its own temperature; see `Sampler.sample`.

        The generator gives one seed per request (one per 1 024 of its completions), and vLLM draws with these seeds.
        The same generator state, weights and requests give the same completions, except for draws so close to a
        boundary that float noise decides them: vLLM batches rows as time permits, and another batch rounds differently.

        Raises:
            ValueError: A prompt is empty or leaves no room for `max_tokens`; a temperature is below 0.01 or not finite;
                a request has a temperature per token or a negative count; or `max_tokens` is below 1.
            RuntimeError: The model's logits are not finite, or vLLM cannot be started or reached.
        """
        _check(requests, max_tokens)
        parts = [
            (request, min(PART, request.count - first))
            for request in requests
            for first in range(0, request.count, PART)
        ]
        if not parts:
            return []
        limits = [self.room.limit(len(request.prompt.tokens), max_tokens) for request, _ in parts]
        self._check_room([len(request.prompt.tokens) for request, _ in parts], limits)
        seeds = torch.randint(2**62, (len(parts),), generator=generator, device=generator.device).tolist()
        stop = () if self.stop is None else self.stop.strings
        asked = [
            VLLMRequest(r.prompt.tokens, count, r.temperature, self.cuts, limit, self.eos_token_ids, seed, stop)
            for (r, count), limit, seed in zip(parts, limits, seeds, strict=True)
        ]
        outputs = self.backend.generate(asked)
        if not all(math.isfinite(logprob) for some in outputs for output in some for logprob in output.logprobs):
            # Keys and values that are not finite stay in vLLM's memory and spoil later completions of good weights.
            self.backend.close()
            raise RuntimeError("vLLM gave log-probabilities that are not finite; the weights have probably diverged")
        return [
            self._completion(request, output)
            for (request, _), some in zip(parts, outputs, strict=True)
            for output in some
        ]

    def _completion(self, request: Request, output: VLLMOutput) -> Completion:
        """Return the completion, without what vLLM may have drawn after the token that completed a stop string."""
        length = None if self.stop is None else self.stop.length(output.tokens)
        return Completion(
            prompt=request.prompt,
            group=request.group,
            temperature=request.temperature,
            tokens=output.tokens[:length],
            logprobs=output.logprobs[: len(output.tokens[:length])],
            truncated=not output.ended and length is None,
        )

    def _check_room(self, prompts: Sequence[int], limits: Sequence[int]) -> None:
        """Refuse completions that do not fit into the engine behind their prompts; both are lengths, tokens."""
        room = self.backend.max_model_len
        prompt, max_tokens = max(zip(prompts, limits, strict=True), key=sum)
        wanted = f"at most {room - prompt} after a prompt of {prompt} tokens (the engine's max_model_len is {room})"
        require(prompt + max_tokens <= room, "max_tokens", max_tokens, wanted)


def _check(requests: Sequence[Request], max_tokens: int) -> None:
    require(max_tokens >= 1, "max_tokens", max_tokens, "at least 1")
    for request in requests:
        temperature, prompt = request.temperature, request.prompt
        wanted = f"a finite number, from {COLDEST} to {HOTTEST:g} with vLLM"
        require(COLDEST <= temperature <= HOTTEST, "temperature", temperature, wanted)
        per_token = request.token_temperature
        require(per_token is None, "token_temperature", per_token, 'none with vLLM; sampling.engine = "hf" has it')
        require(request.count >= 0, "count", request.count, "at least 0")
        require(len(prompt.tokens) > 0, f"prompt {prompt.id!r} tokens", prompt.tokens, "at least one token")
        require(
            not prompt.images, f"prompt {prompt.id!r}", "with images", 'one of text; sampling.engine = "hf" has images'
        )
