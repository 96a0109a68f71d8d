"""New weights for vLLM without files: CUDA IPC on one GPU, NCCL between GPUs; see docs/sampling.md.

vLLM has both sides of a transfer. In the worker, a weight transfer engine (`weight_transfer_config`) receives tensors
and loads them into the running model. In the trainer, `WeightTransferTrainerFactory` makes the sender. This module
gives the sender the policy's weights and a way to call the worker, and refuses what cannot work.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from aepo.errors import require
from aepo.sampling.vllm import SavablePolicy

Way = Literal["ipc", "nccl"]
Call = Callable[[str, Mapping[str, Any]], Sequence[Any]]
"""Calls a method of all of vLLM's workers by its name, and returns the result of each worker."""

SETTING = "sampling.weights"
# Least size of the tensors that one message carries, bytes.
CHUNK = 2**28
# What a handle of GPU memory names of torch; the memory is a buffer of bytes.
TORCH: dict[str, Any] = {"Tensor": torch.Tensor, "TypedStorage": torch.TypedStorage, "uint8": torch.uint8}


class Transfer:
    """`Transfer` sends the weights of a policy to a running vLLM.

    Args:
        way: `ipc` or `nccl`.
        call: Calls vLLM's workers; they have `WorkerExtension`.
        policy: The policy whose weights are sent first. It is not sent here.

    Raises:
        InvalidValue: This vLLM cannot receive the weights in this way.
    """

    def __init__(self, way: Way, call: Call, policy: SavablePolicy) -> None:
        check_version(way)
        self._device: torch.device = policy.model.device
        check_device(way, self._device)
        workers = call("aepo_facts", {})
        check_workers(way, workers, gpu(self._device))
        self._source = Source(policy, _one_dtype(workers))
        with self._on_device():
            self._sender = _sender(way, self._source, Client(call), len(workers))

    def send(self, policy: SavablePolicy) -> None:
        """Send the policy's present weights, and return when vLLM has loaded them."""
        self._source.policy = policy
        with self._on_device():
            self._sender.send_weights()

    def close(self) -> None:
        """Give back what the sender holds."""
        self._sender.shutdown()

    def _on_device(self) -> AbstractContextManager[Any]:
        """Return a context in which the policy's GPU is the current one; each thread begins with the first GPU."""
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


class Source:
    """`Source` gives vLLM's sender the weights of a policy, one at a time (vLLM's `WeightSource`).

    Args:
        policy: The policy.
        dtype: The dtype of all parameters of vLLM, to which floats are rounded before they are sent; None sends them as
            they are, where vLLM has several.
    """

    def __init__(self, policy: SavablePolicy, dtype: torch.dtype | None) -> None:
        self.policy = policy
        self._dtype = dtype
        self._metadata: list[Any] = []

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in self.policy.merged_weights():
            yield name, tensor.to(self._dtype if tensor.is_floating_point() else None)

    def metadata(self) -> list[Any]:
        """Return the name, dtype and shape of each weight, in the order in which they come."""
        if not self._metadata:
            from vllm.distributed.weight_transfer.base import (  # type: ignore[import-not-found,unused-ignore]
                ParamMeta,
            )

            self._metadata = [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self]
        return self._metadata

    @property
    def largest(self) -> int:
        """Return the size of the largest weight, bytes."""
        return max(int(math.prod(one.shape) * one.dtype.itemsize) for one in self.metadata())


class Client:
    """`Client` takes the calls of vLLM's sender to the workers (vLLM's `VLLMWeightSyncClient`)."""

    def __init__(self, call: Call) -> None:
        self._call = call

    def init_weight_transfer_engine(self, init_info: Mapping[str, Any]) -> None:
        """Connect the workers with the sender."""
        self._call("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        """Make the workers ready to receive weights."""
        self._call("start_weight_update", {})

    def update_weights(self, update_info: Mapping[str, Any]) -> None:
        """Let the workers receive and load some weights."""
        info = dict(update_info)
        if "ipc_handles" not in info:
            self._call("update_weights", {"update_info": info})
            return
        info = {name: value for name, value in info.items() if value is not None}
        self._call("aepo_update", {"update_info": info | {"ipc_handles": plain_handles(info["ipc_handles"])}})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """Let the workers complete the update."""
        self._call("finish_weight_update", {})
        self._call("aepo_repack", {})


def plain_handles(given: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the handles of GPU memory without objects of torch and bytes, so that a message can carry them.

    vLLM's own messages would pickle them, which needs VLLM_ALLOW_INSECURE_SERIALIZATION in both processes.

    Args:
        given: For each GPU, the arguments of torch's `rebuild_cuda_tensor`.
    """
    return {name: [_plain(argument) for argument in arguments] for name, arguments in given.items()}


def handles(plain: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Any, ...]]:
    """Return the handles from which `plain_handles` made this."""
    return {name: tuple(_argument(argument) for argument in arguments) for name, arguments in plain.items()}


def _plain(argument: Any) -> Any:
    if isinstance(argument, bytes):
        return {"bytes": argument.hex()}
    if isinstance(argument, type | torch.dtype):
        name = argument.__name__ if isinstance(argument, type) else str(argument).removeprefix("torch.")
        return {"torch": name}
    return list(argument) if isinstance(argument, tuple) else argument


def _argument(plain: Any) -> Any:
    if not isinstance(plain, Mapping):
        return tuple(plain) if isinstance(plain, list) else plain
    return bytes.fromhex(plain["bytes"]) if "bytes" in plain else TORCH[plain["torch"]]


def gpu(device: torch.device) -> str:
    """Return the name of a GPU that all processes of the machine know it by; empty for another device."""
    return str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else ""


def check_version(way: str) -> None:
    """Check that the installed vLLM has transfers of weights; both sides need it."""
    try:
        there = importlib.util.find_spec("vllm.distributed.weight_transfer.factory") is not None
    except ModuleNotFoundError:
        there = False
    require(there, SETTING, way, "files without vLLM 0.32 beside the trainer: pip install 'aepo[vllm]'")


def check_device(way: str, device: torch.device) -> None:
    """Check that the policy's weights are on a GPU from which they can be sent."""
    wanted = f"files, or auto, with the policy on {device}: it sends from a GPU"
    require(device.type == "cuda", SETTING, way, wanted)


def check_workers(way: Way, workers: Sequence[Mapping[str, Any]], own: str) -> None:
    """Check that vLLM's workers can receive the weights.

    Args:
        way: `ipc` or `nccl`.
        workers: What `WorkerExtension.aepo_facts` says of each worker.
        own: The policy's GPU.
    """
    first = workers[0]
    check_engine(way, len(workers) * first["replicas"], first["quantization"])
    wanted = f'files, or a vLLM that was started with --weight-transfer-config \'{{"backend": "{way}"}}\''
    require(first["backend"] == way, SETTING, f"{way}, and vLLM has {first['backend']}", wanted)
    found = {worker["gpu"] for worker in workers}
    if way == "ipc":
        require(found == {own}, SETTING, way, "files or nccl: vLLM is on another GPU than the policy")
    else:
        require(own not in found, SETTING, way, "files or ipc: vLLM is on the policy's GPU, which NCCL refuses")


def check_engine(way: Way, workers: int, quantization: str | None) -> None:
    """Check the number of vLLM's workers and the format of their weights."""
    require(quantization is None, SETTING, way, f"files with quantised weights ({quantization}) in vLLM")
    if way == "ipc":
        require(workers == 1, SETTING, way, f"files or nccl with {workers} workers of vLLM: one GPU has one")


def _one_dtype(workers: Sequence[Mapping[str, Any]]) -> torch.dtype | None:
    """Return the dtype of all parameters of vLLM; None if there are several."""
    dtypes = {dtype for worker in workers for dtype in worker["dtypes"]}
    return getattr(torch, dtypes.pop()) if len(dtypes) == 1 else None


def _sender(way: Way, source: Source, client: Client, workers: int) -> Any:
    """Return vLLM's sender, connected with the workers."""
    from vllm.distributed.weight_transfer.factory import (  # type: ignore[import-not-found,unused-ignore]
        WeightTransferTrainerFactory,
    )

    size = max(CHUNK, source.largest)
    info: Any
    if way == "ipc":
        from vllm.distributed.weight_transfer.ipc_engine import (  # type: ignore[import-not-found,unused-ignore]
            IPCTrainerInitInfo,
        )

        info = IPCTrainerInitInfo(rank=0, packed=True, packed_buffer_size_bytes=size)
    else:
        from vllm.distributed.weight_transfer.nccl_engine import (  # type: ignore[import-not-found,unused-ignore]
            NCCLTrainerInitInfo,
        )
        from vllm.utils.network_utils import get_ip, get_open_port  # type: ignore[import-not-found,unused-ignore]

        info = NCCLTrainerInitInfo(
            get_ip(), get_open_port(), 1 + workers, rank=0, packed=True, packed_buffer_size_bytes=size
        )
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
