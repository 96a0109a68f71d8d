"""Sampling with vLLM: an engine in a process of its own, given the newest weights before a step. See docs/sampling.md."""

from __future__ import annotations

import math
import multiprocessing
import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeVar

import torch

from aepo.checks import require
from aepo.sampling.base import Sampler
from aepo.types import Completion, Request

T = TypeVar("T")

# vLLM draws colder requests at this temperature, or greedily, without an error.
COLDEST = 0.01
# Most completions under one seed; vLLM refuses more than 16 384.
PART = 1024
TMPFS = Path("/dev/shm")


class Saved(Protocol):
    """What `refresh` needs of a policy; `aepo.policy.Policy` has it."""

    model: Any

    def save(self, folder: Path) -> None:
        """Weights and configuration in Hugging Face format (safetensors)."""


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
    """A vLLM engine, and the weights that it has. Several samplers may share one."""

    def __init__(self) -> None:
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

    def refresh(self, policy: Saved) -> None:
        """Take the policy's weights, by way of a temporary folder."""
        old, self._scratch = self._scratch, self._new_scratch(policy.model)
        policy.save(Path(self._scratch.name))
        self.update(Path(self._scratch.name))
        if old is not None:
            old.cleanup()

    def _new_scratch(self, model: Any) -> tempfile.TemporaryDirectory[str]:
        """In memory where old and new weights find room there, else on disk."""
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
        return [
            _completion(request, answer)
            for (request, _), some in zip(parts, answers, strict=True)
            for answer in some
        ]

    def _check_room(self, requests: Sequence[Request], max_tokens: int) -> None:
        longest, limit = max(len(request.prompt.tokens) for request in requests), self.engine.max_model_len
        wanted = f"at most {limit - longest} after a prompt of {longest} tokens (the engine's max_model_len is {limit})"
        require(longest + max_tokens <= limit, "max_tokens", max_tokens, wanted)


class LocalEngine(Engine):
    """A `vllm.LLM` whose engine runs in a process of its own, started when it is first needed.

    When that process dies (or has died since), it is started again once with the newest weights and the call is
    repeated; a second death in the same call is raised. What was interrupted or failed in another way leaves no
    engine behind: the next call starts a new one.

    folder: the first weights, or none where `refresh` comes first. settings: vLLM's engine arguments, over
    `default_settings()`.
    """

    def __init__(self, folder: Path | None = None, **settings: Any) -> None:
        super().__init__()
        self._folder = folder
        self._settings = settings
        self._llm: Any = None
        self._processes: list[Any] = []

    @property
    def max_model_len(self) -> int:
        """Most tokens of a prompt and its completion together; starts the engine."""
        limit: int = self._running().model_config.max_model_len
        return limit

    def generate(self, jobs: Sequence[Job]) -> list[list[Answer]]:
        """The answers of each job, in the jobs' order."""
        try:
            return self._watched(lambda: self._generate(jobs))
        except _EngineDied:
            return self._watched(lambda: self._generate(jobs))

    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors)."""
        self._folder = folder
        if self._llm is None:
            return
        try:
            self._watched(self._reload)
        except _EngineDied:
            pass  # the next engine starts with these weights

    def close(self) -> None:
        """End the engine's process. Another one is started when it is needed."""
        llm, self._llm = self._llm, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._processes = []

    def _running(self) -> Any:
        if self._llm is None:
            if self._folder is None:
                raise RuntimeError("vLLM has no weights yet: call refresh or update first")
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

            others = multiprocessing.active_children()
            self._llm = LLM(str(self._folder), **{**default_settings(), **self._settings})
            self._processes = [child for child in multiprocessing.active_children() if child not in others]
        return self._llm

    def _generate(self, jobs: Sequence[Job]) -> list[list[Answer]]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(job.prompt)} for job in jobs]
        params = [
            SamplingParams(
                n=job.count,
                temperature=job.temperature,
                top_p=job.top_p,
                max_tokens=job.max_tokens,
                stop_token_ids=list(job.end),
                seed=job.seed,
                ignore_eos=True,  # or the model's own end tokens would count beside ours
                logprobs=0,  # of the sampled token alone
                flat_logprobs=True,
                detokenize=False,
            )
            for job in jobs
        ]
        results = self._llm.generate(prompts, params, use_tqdm=False)
        return [
            [
                Answer(tuple(o.token_ids), tuple(o.logprobs.logprobs), o.finish_reason == "stop")
                for o in sorted(result.outputs, key=lambda output: int(output.index))
            ]
            for result in results
        ]

    def _reload(self) -> None:
        self._llm.collective_rpc("aepo_load", args=(str(self._folder),))
        # Keys and values of the old weights, which a prompt seen before would find.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over new weights: requests are still running")

    def _watched(self, call: Callable[[], T]) -> T:
        """The call's result; `_EngineDied` when the process ends under it.

        In a thread, because vLLM's synchronous client waits for ever when the process is killed.
        """
        self._running()
        from vllm.v1.engine.exceptions import (  # type: ignore[import-not-found,unused-ignore]
            EngineDeadError,
        )

        box: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        Thread(target=_run, args=(call, box), daemon=True).start()
        try:
            result, error = self._await(box)
            if isinstance(error, EngineDeadError):
                raise _EngineDied from error
            if error is not None:
                raise error
        except BaseException:
            self.close()
            raise
        return result  # type: ignore[return-value]

    def _await(self, box: SimpleQueue[Any]) -> Any:
        while True:
            dead = not all(process.is_alive() for process in self._processes)
            try:
                return box.get(timeout=0.2)
            except Empty:
                if dead:
                    raise _EngineDied("vLLM's engine process ended, twice if it was started again") from None


class _EngineDied(RuntimeError):
    """The engine's process ended while or before it was needed."""


class WorkerExtension:
    """Mixed into vLLM's worker (`worker_extension_cls`) and called through `collective_rpc`."""

    def aepo_load(self, folder: str) -> None:
        """Reload the weights in place. Raises whatever vLLM raises when they do not fit.

        On a CPU a tied output layer is a matrix packed from the embedding when the model was first loaded; vLLM
        reloads the embedding and leaves the packed copy as it was, so it is packed again here.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # type: ignore[import-not-found,unused-ignore]
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        worker: Any = self
        worker.reload_weights(weights_path=folder)
        for module in worker.get_model().modules():
            if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                module.quant_method.process_weights_after_loading(module)


def default_settings() -> dict[str, Any]:
    """Engine arguments that hold unless others are given.

    float32, as the trainer; 1 GiB for keys and values, so that a trainer finds room beside them. The log-probs are
    those of the distribution drawn from, after temperature and top-p.
    """
    return {
        "dtype": "float32",
        "kv_cache_memory_bytes": 2**30,
        "enforce_eager": not torch.cuda.is_available(),  # compiling takes minutes on a CPU
        "logprobs_mode": "processed_logprobs",
        "worker_extension_cls": f"{__name__}.{WorkerExtension.__name__}",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "disable_log_stats": True,
    }


def _run(call: Callable[[], T], box: SimpleQueue[tuple[T | None, BaseException | None]]) -> None:
    try:
        box.put((call(), None))
    except BaseException as error:
        box.put((None, error))


def _completion(request: Request, answer: Answer) -> Completion:
    if not all(map(math.isfinite, answer.logprobs)):
        raise RuntimeError("vLLM gave log-probabilities that are not finite; the weights have probably diverged")
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
        require(per_token is None, "token_temperature", per_token, "none with vLLM; sampling.engine = \"hf\" has it")
        require(request.count >= 0, "count", request.count, "at least 0")
        require(len(prompt.tokens) > 0, f"prompt {prompt.id!r} tokens", prompt.tokens, "at least one token")
