"""A platform `cpu` for verl: no accelerator, gloo, and Ray resources that are named GPU and are none."""

from __future__ import annotations

import contextlib
import types

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry
from verl.utils import distributed


class Device(types.ModuleType):
    """What verl calls as torch.cuda: torch.cpu where it has the name, else nothing happens and 0 comes back."""

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.cpu, name, lambda *args, **kwargs: 0)

    get_rng_state = staticmethod(lambda *device: torch.get_rng_state())
    set_rng_state = staticmethod(lambda state, *device: torch.set_rng_state(state))
    mem_get_info = staticmethod(lambda *device: (1, 1))
    get_device_name = staticmethod(lambda *device: "CPU")
    is_available = staticmethod(lambda: True)


DEVICE = Device("cpu_as_device")


@PlatformRegistry.register(platform="cpu")
class CPU(PlatformBase):
    device_name = "cpu"
    vendor_name = "cpu"
    device_module = DEVICE

    def is_available(self):
        return True

    def current_device(self):
        return "cpu"

    def device_count(self):
        return 1

    def manual_seed(self, seed):
        torch.manual_seed(seed)

    def manual_seed_all(self, seed):
        torch.manual_seed(seed)

    def get_device_capability(self, device_index=0):
        return None, None

    def communication_backend_name(self):
        return "gloo"

    def visible_devices_envvar(self):
        return "CUDA_VISIBLE_DEVICES"

    def ray_resource_name(self):
        return "GPU"

    def ray_noset_envvars(self):
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self):
        return False

    @contextlib.contextmanager
    def nvtx_range(self, msg):
        yield

    def _nothing(self, *args):
        return None

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing


def once_gloo(timeout_second=None, backend=None):
    """verl's default is "cpu:gloo,<device>:<backend>", which names the CPU twice here."""
    return _initialize(timeout_second=timeout_second, backend="cpu:gloo")


_initialize = distributed.initialize_global_process_group_ray
distributed.initialize_global_process_group_ray = once_gloo


def keep_unpinned() -> None:
    """A reference model is offloaded to pinned memory, which asks for an accelerator; here it is on the CPU anyway."""
    from torch.distributed.fsdp import OffloadPolicy
    from verl.utils import fsdp_utils

    fsdp_utils.CPUOffloadPolicy = lambda pin_memory=False: OffloadPolicy()


keep_unpinned()
