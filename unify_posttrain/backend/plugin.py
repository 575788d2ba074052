"""Loaded by verl 0.9 whenever it is imported (entry point `verl.plugins`), so in every process: a platform for the CPU.

verl asks a platform for everything about its devices and has none for the CPU; without one it takes a machine for one with CUDA.
Its modules fix the name of the device when they are imported, so the platform must be there before. verl passes over a plugin that
fails without a word: `startup.backend_checks` asks whether this one was installed.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch

from unify_posttrain import cpu_compat


def installed() -> bool:
    """Whether verl knows what this machine has."""
    from verl.plugin.platform import get_platform

    return torch.cuda.is_available() or get_platform().device_name == "cpu"


def install() -> None:
    """Register and choose it on machines without CUDA; does nothing with one, and nothing when repeated."""
    if torch.cuda.is_available() or find_spec("verl.plugin") is None:  # 0.7.1 looks at torch alone
        return
    from verl.plugin.platform import PlatformBase, PlatformRegistry, set_platform

    if PlatformRegistry.get("cpu") is not None:
        return
    cpu_compat.install()

    class PlatformCPU(PlatformBase):
        """The ranks are processes on the CPU, declared to Ray as GPUs, joined by gloo."""

        device_name = "cpu"
        vendor_name = "cpu"
        device_module = torch.cpu

        def is_available(self) -> bool:
            return True

        def is_platform_available(self, use_smi_check: bool = False) -> bool:
            return True

        def current_device(self) -> Any:
            return torch.device("cpu")

        def device_count(self) -> int:
            return 1

        def set_device(self, device_index: int) -> None:
            return None

        def synchronize(self, device_index: int | None = None) -> None:
            return None

        def manual_seed(self, seed: int) -> None:
            torch.manual_seed(seed)

        def manual_seed_all(self, seed: int) -> None:
            torch.manual_seed(seed)

        def set_allocator_settings(self, settings: str) -> None:
            return None

        def empty_cache(self) -> None:
            return None

        def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
            return None, None

        def communication_backend_name(self) -> str:
            return "gloo"

        def visible_devices_envvar(self) -> str:
            return "CUDA_VISIBLE_DEVICES"

        def nvtx_range(self, msg: str) -> Any:
            return nullcontext()

        def profiler_start(self) -> None:
            return None

        def profiler_stop(self) -> None:
            return None

        def ray_resource_name(self) -> str:
            return "GPU"

        def ray_noset_envvars(self) -> list[str]:
            return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

        def ray_resource_options(self, num_gpus: float) -> dict[str, Any]:
            return {"num_gpus": num_gpus}

        def is_ipc_supported(self) -> bool:
            return False

        def cudart(self) -> None:
            return None

    PlatformRegistry.register(platform="cpu")(PlatformCPU)
    set_platform(PlatformCPU())


install()
