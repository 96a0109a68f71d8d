"""Stand-ins for what CUDA and NCCL do, so that vLLM's own transfer of weights runs on a CPU.

All else is vLLM's: both engines of the trainer, both of the worker, packing, the layerwise reload. Replaced are

- the buffer on the GPU: a file in memory, whose path and size are the handle that CUDA IPC would give;
- the communicator of NCCL: vLLM's own process group over TCP, which the rendezvous makes anyway;
- streams, and the name of the GPU.

So no figure and no failure of CUDA can show here.
"""

from __future__ import annotations

import os
import tempfile
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch

from aepo.sampling import vllm_local

GPU = "stand-in"
STREAM = SimpleNamespace(synchronize=lambda: None)


class _Torch:
    """torch, but that a buffer on "cuda" is a file in memory and streams do nothing."""

    def __init__(self) -> None:
        streams = {"stream": lambda stream: nullcontext(), "current_stream": lambda: STREAM}
        self.cuda = SimpleNamespace(get_device_properties=_properties, **streams)
        self.accelerator = SimpleNamespace(current_device_index=lambda: 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *sizes: Any, device: Any = None, **more: Any) -> torch.Tensor:
        if device != "cuda":
            return torch.empty(*sizes, device=device, **more)
        (size,) = sizes
        handle, path = tempfile.mkstemp(prefix="aepo-standin-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        os.truncate(handle, size)
        os.close(handle)
        tensor = _mapped(path, size)
        tensor.path = path
        return tensor


def _mapped(path: str, size: int) -> torch.Tensor:
    return torch.from_file(path, shared=True, size=size, dtype=torch.uint8)


def _reduce(tensor: torch.Tensor) -> tuple[None, tuple[Any, ...]]:
    """What `reduce_tensor` gives for CUDA has the index of the device at place 6, which the receiver replaces."""
    return None, (tensor.path, tensor.numel(), None, None, None, None, 0)


def _rebuild(path: str, size: int, *rest: Any) -> torch.Tensor:
    return _mapped(path, size)


def _properties(device: Any) -> SimpleNamespace:
    return SimpleNamespace(uuid=GPU)


class Communicator:
    """`PyNcclCommunicator` as far as a transfer calls it."""

    def __init__(self, group: Any, device: Any) -> None:
        self.group = group

    def broadcast(self, tensor: torch.Tensor, src: int, stream: Any = None) -> None:
        received = self.group.broadcast(tensor, src)
        if self.group.rank != src:
            tensor.copy_(received)

    def destroy(self) -> None:
        self.group = None


def patches() -> list[Any]:
    """What is replaced in the trainer, and in vLLM's worker."""
    from vllm.distributed.device_communicators import pynccl
    from vllm.distributed.weight_transfer import base, ipc_engine, nccl_common, packed_tensor

    fake = _Torch()
    return [
        *(patch.object(module, "torch", fake) for module in (packed_tensor, nccl_common)),
        patch.object(ipc_engine.torch.cuda, "get_device_properties", _properties),
        patch.object(ipc_engine.torch.cuda, "ipc_collect", lambda: None),
        patch.object(ipc_engine.torch.accelerator, "current_device_index", lambda: 0),
        patch.object(base.torch.accelerator, "synchronize", lambda: None),
        patch.object(packed_tensor, "reduce_tensor", _reduce),
        patch.object(packed_tensor, "_get_streams", lambda device, count: (STREAM,) * count),
        patch.object(torch.multiprocessing.reductions, "rebuild_cuda_tensor", _rebuild),
        patch.object(pynccl, "PyNcclCommunicator", Communicator),
    ]


class Extension(vllm_local.WorkerExtension):
    """The worker's extension, which puts the stand-ins in place when vLLM's worker first asks for facts."""

    def aepo_facts(self) -> dict[str, Any]:
        for one in patches():
            one.start()
        return super().aepo_facts()


NAME = f"{__name__}.{Extension.__name__}"
