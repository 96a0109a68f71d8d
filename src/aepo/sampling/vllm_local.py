"""A backend that starts vLLM in a process of its own, and the code that runs in vLLM's worker."""

from __future__ import annotations

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal, TypeVar

import torch
from transformers import AutoConfig

from aepo.errors import InvalidValue
from aepo.sampling.vllm import SavablePolicy, VLLMBackend, VLLMOutput, VLLMRequest, in_thread
from aepo.sampling.vllm_transfer import Transfer, check_engine, check_version, gpu, handles

T = TypeVar("T")

# Least number of prompt tokens for which one forward pass on a CPU has room.
BATCHED_TOKENS = 8192


class LocalVLLMBackend(VLLMBackend):
    """`LocalVLLMBackend` runs a `vllm.LLM` whose engine has a process of its own; the first call starts it.

    If that process dies, or has died since the last call, it is started again once with the newest weights, and the
    call is repeated; a second death in the same call raises RuntimeError. A call that is interrupted, or fails in
    another way, ends the process; the next call starts a new one.

    Args:
        folder: The folder of the first weights; None if `refresh` or `update` comes first.
        weights: How `refresh` hands weights to a process that runs: `files` through a folder, `ipc` from the policy's
            tensors on the same GPU, without a copy outside it. `auto` is `ipc` on a GPU, and `files` where that fails.
            With `ipc`, the newest weights after a death are those that the policy has when the process starts again.
        **settings: Engine arguments of vLLM. They replace those of `default_settings()`. Stop strings need
            `skip_tokenizer_init=False`.

    Raises:
        InvalidValue: There is no vLLM that takes weights by `ipc`, or these settings exclude it.
    """

    def __init__(
        self, folder: Path | None = None, *, weights: Literal["files", "ipc", "auto"] = "files", **settings: Any
    ) -> None:
        super().__init__()
        self._folder = folder
        self._settings = settings
        self._llm: Any = None
        self._processes: list[Any] = []
        self._must = weights == "ipc"
        self._in_place = self._must or (weights == "auto" and torch.cuda.is_available())
        self._transfer: Transfer | None = None
        self._sent: SavablePolicy | None = None
        if self._in_place:
            self._check()

    def _check(self) -> None:
        """Refuse what excludes `ipc`, or take files instead if the choice was left to this class."""
        sizes = [self._settings.get(f"{kind}_parallel_size", 1) for kind in ("tensor", "pipeline", "data")]
        try:
            check_version("ipc")
            check_engine("ipc", math.prod(sizes), self._settings.get("quantization"))
        except InvalidValue:
            if self._must:
                raise
            self._in_place = False

    @property
    def max_model_len(self) -> int:
        """Return the largest number of tokens of a prompt and its completion together; this starts vLLM."""
        limit: int = self._running().model_config.max_model_len
        return limit

    def generate(self, requests: Sequence[VLLMRequest]) -> list[list[VLLMOutput]]:
        """Return the outputs of each request, in the order of the requests."""
        try:
            return self._watched(lambda: self._generate(requests))
        except _EngineDied:
            return self._watched(lambda: self._generate(requests))

    def update(self, folder: Path) -> None:
        """Take the weights of this folder (safetensors).

        Raises:
            RuntimeError: The weights do not fit the model.
        """
        self._folder, self._sent = folder, None
        if self._llm is None:
            return
        try:
            self._watched(self._reload)
        except _EngineDied:
            return  # the next process starts with these weights
        except Exception as error:
            raise RuntimeError(f"vLLM did not take the weights in {folder}: {error}") from error

    def refresh(self, policy: SavablePolicy) -> None:
        """Take the policy's weights. The first ones come through a folder, from which vLLM starts.

        Raises:
            InvalidValue: `weights="ipc"` cannot work with this policy.
            RuntimeError: The weights do not fit the model, or arrived with other values.
        """
        if not self._in_place or self._llm is None:
            super().refresh(policy)
            return
        try:
            self._watched(lambda: self._take(policy))
        except _EngineDied:
            super().refresh(policy)  # the next process starts with these weights
        except Exception as error:
            if self._must and isinstance(error, InvalidValue):
                raise
            if self._must:
                raise RuntimeError(f"vLLM did not take the weights: {error}") from error
            warnings.warn(f"vLLM gets its weights through files from now on: {error}", RuntimeWarning, stacklevel=2)
            self._in_place = False
            super().refresh(policy)
        else:
            self._sent = policy
            self._drop_scratch()

    def _take(self, policy: SavablePolicy) -> None:
        if self._transfer is None:
            self._transfer = Transfer("ipc", self._call, policy)
            self._prove(self._transfer, policy)
        else:
            self._transfer.send(policy)
        self._forget()

    def _prove(self, transfer: Transfer, policy: SavablePolicy) -> None:
        """Load the policy's weights from files, set them to zero, send them, and compare the bits in vLLM."""
        with self._new_scratch(policy.model) as folder:
            policy.save_merged(Path(folder))
            self._call("aepo_load", {"folder": folder})
        expected = self._call("compute_weight_checksums", {})
        self._call("reset_weights", {})
        transfer.send(policy)
        if self._call("compute_weight_checksums", {}) != expected:
            raise RuntimeError("its weights differ from those that came through a folder")

    def close(self) -> None:
        """End vLLM's process. A later call starts another one."""
        llm, self._llm, self._transfer = self._llm, None, None
        if llm is not None:
            llm.llm_engine.engine_core.shutdown()
        for process in self._processes:
            process.join(10)
            process.kill()
        self._processes = []

    def _running(self) -> Any:
        if self._llm is None:
            if self._sent is not None:
                super().refresh(self._sent)
            if self._folder is None:
                raise RuntimeError("vLLM has no weights yet: call refresh or update first")
            os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
            from vllm import LLM  # type: ignore[import-not-found,unused-ignore]

            others = multiprocessing.active_children()
            settings = {**default_settings(), **self._settings}
            if not torch.cuda.is_available():
                settings = {**_whole_prompts(self._folder, settings.get("max_model_len")), **settings}
            if self._in_place:
                settings = {"weight_transfer_config": {"backend": "ipc"}, **settings}
            self._llm = LLM(str(self._folder), **settings)
            self._processes = [child for child in multiprocessing.active_children() if child not in others]
        return self._llm

    def _generate(self, requests: Sequence[VLLMRequest]) -> list[list[VLLMOutput]]:
        from vllm import SamplingParams

        prompts = [{"prompt_token_ids": list(request.prompt)} for request in requests]
        params = [
            SamplingParams(
                n=request.count,
                temperature=request.temperature,
                top_p=request.cuts.top_p,
                top_k=request.cuts.top_k or 0,
                min_p=request.cuts.min_p,
                max_tokens=request.max_tokens,
                stop_token_ids=list(request.end),
                seed=request.seed,
                ignore_eos=True,  # otherwise the model's own end tokens also end a completion
                logprobs=0,  # only of the sampled token
                flat_logprobs=True,
                detokenize=bool(request.stop),
                stop=list(request.stop),
                include_stop_str_in_output=True,
                skip_special_tokens=False,
            )
            for request in requests
        ]
        results = self._llm.generate(prompts, params, use_tqdm=False)
        return [
            [
                VLLMOutput(tuple(o.token_ids), tuple(o.logprobs.logprobs), o.finish_reason == "stop")
                for o in sorted(result.outputs, key=lambda output: int(output.index))
            ]
            for result in results
        ]

    def _reload(self) -> None:
        self._call("aepo_load", {"folder": str(self._folder)})
        self._forget()

    def _call(self, method: str, arguments: Mapping[str, Any]) -> list[Any]:
        results: list[Any] = self._llm.collective_rpc(method, kwargs=dict(arguments))
        return results

    def _forget(self) -> None:
        # The cache holds keys and values of the old weights, which a repeated prompt would use.
        if not self._llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache over new weights: requests are still running")

    def _watched(self, call: Callable[[], T]) -> T:
        """Return the call's result, or raise `_EngineDied` if vLLM's process ends during the call.

        The call runs in a thread, because vLLM's synchronous client waits for ever if the process is killed.
        """
        self._running()
        box = in_thread(call)
        try:
            return self._await(box).result()
        except Exception as error:
            # vLLM raises EngineDeadError, or another error of the sockets that it closed when the process had ended.
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
    """vLLM's engine process ended before or during a call."""

    def __init__(self) -> None:
        super().__init__("vLLM's engine process ended, and again after a restart; its own log says why")


class WorkerExtension:
    """`WorkerExtension` adds methods to vLLM's worker (`worker_extension_cls`); `collective_rpc` calls them."""

    def aepo_load(self, folder: str) -> None:
        """Reload the weights of this folder in place. vLLM's own error is raised if they do not fit."""
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        self.aepo_repack()

    def aepo_repack(self) -> None:
        """Pack a tied output layer again, after new weights.

        On a CPU a tied output layer is a packed copy of the embedding, made when the model was first loaded. vLLM
        reloads the embedding and leaves the packed copy as it was.
        """
        from vllm.model_executor.layers.vocab_parallel_embedding import (  # type: ignore[import-not-found,unused-ignore]
            ParallelLMHead,
            UnquantizedEmbeddingMethod,
        )

        worker: Any = self
        for module in worker.get_model().modules():
            if isinstance(module, ParallelLMHead) and isinstance(module.quant_method, UnquantizedEmbeddingMethod):
                module.quant_method.process_weights_after_loading(module)

    def aepo_update(self, update_info: dict[str, Any]) -> None:
        """Receive weights by `ipc`; the handles of the policy's memory are in the form of `plain_handles`."""
        worker: Any = self
        worker.update_weights(update_info | {"ipc_handles": handles(update_info["ipc_handles"])})

    def aepo_facts(self) -> dict[str, Any]:
        """Return what decides whether this worker can receive weights without files; see `check_workers`."""
        worker: Any = self
        config = worker.vllm_config
        transfer = config.weight_transfer_config
        dtypes = {str(weight.dtype).removeprefix("torch.") for weight in worker.get_model().parameters()}
        return {
            "gpu": gpu(worker.device),
            "dtypes": sorted(dtypes),
            "quantization": config.model_config.quantization,
            "replicas": config.parallel_config.data_parallel_size,
            "backend": None if transfer is None else transfer.backend,
        }


def default_settings() -> dict[str, Any]:
    """Return the engine arguments of vLLM that hold unless others are given.

    The weights are float32, as in the trainer. Keys and values get 1 GiB, so that a trainer finds room beside them. The
    log-probabilities are those of the distribution that is drawn from, after temperature and top-p.
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
    """Return settings under which vLLM prefills no prompt in parts.

    After each part, vLLM resets the generator of a seeded row by an offset. Generators on a CPU have no offset, so the
    engine dies (0.32.0).
    """
    longest = max_model_len or AutoConfig.from_pretrained(folder).get_text_config().max_position_embeddings
    return {"enable_chunked_prefill": False, "max_num_batched_tokens": max(longest, BATCHED_TOKENS)}
