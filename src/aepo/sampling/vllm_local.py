"""A vLLM engine in a process of its own, started here, and the part of it that runs in vLLM's worker."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import torch
from transformers import AutoConfig

from aepo.sampling.vllm import Answer, Engine, Job

T = TypeVar("T")

# Least room for prompts in one forward pass on a CPU.
BATCHED_TOKENS = 8192


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
        """Take the weights of this folder (safetensors). RuntimeError when they do not fit."""
        self._folder = folder
        if self._llm is None:
            return
        try:
            self._watched(self._reload)
        except _EngineDied:
            return  # the next engine starts with these weights
        except Exception as error:
            raise RuntimeError(f"vLLM did not take the weights in {folder}: {error}") from error

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
            settings = {**default_settings(), **self._settings}
            if not torch.cuda.is_available():
                settings = {**_whole_prompts(self._folder, settings.get("max_model_len")), **settings}
            self._llm = LLM(str(self._folder), **settings)
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
        box: SimpleQueue[Future[T]] = SimpleQueue()
        Thread(target=lambda: box.put(_settled(call)), daemon=True).start()
        try:
            return self._await(box).result()
        except Exception as error:
            # vLLM names it, or stumbles over the sockets that it closed when the process was gone.
            died = type(error).__name__ == "EngineDeadError" or not self._alive()
            self.close()
            if died:
                raise _EngineDied from error
            raise
        except BaseException:
            self.close()
            raise

    def _alive(self) -> bool:
        return all(process.is_alive() for process in self._processes)

    def _await(self, box: SimpleQueue[Future[T]]) -> Future[T]:
        while True:
            alive = self._alive()
            try:
                return box.get(timeout=0.2)
            except Empty:
                if not alive:
                    raise _EngineDied from None


class _EngineDied(RuntimeError):
    """The engine's process ended while or before it was needed."""

    def __init__(self) -> None:
        super().__init__("vLLM's engine process ended, and again after a restart; its own log says why")


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


def _whole_prompts(folder: Path, max_model_len: int | None) -> dict[str, Any]:
    """Settings under which no prompt is prefilled in parts.

    After a part, vLLM sets a seeded row's generator back; it does so by an offset, which generators on the CPU have
    not, and the engine dies (0.32.0).
    """
    longest = max_model_len or AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, BATCHED_TOKENS)}


def _settled(call: Callable[[], T]) -> Future[T]:
    future: Future[T] = Future()
    try:
        future.set_result(call())
    except BaseException as error:
        future.set_exception(error)
    return future
