"""What verl expects of a device module and `torch.cpu` lacks, added where it is missing and nowhere else.

verl asks `torch.<device>` for memory figures, caches and random states. On CPU those have an obvious answer: nothing to report,
nothing to empty, the default generator.
"""

from __future__ import annotations

import os
from typing import Any

import psutil
import torch
import torch.distributed as dist


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _zero(*_: Any, **__: Any) -> int:
    return 0


def _mem_get_info(*_: Any) -> tuple[int, int]:
    """(free, total) bytes of main memory, as torch.cuda.mem_get_info."""
    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _resident_bytes(*_: Any) -> int:
    return psutil.Process().memory_info().rss


def install() -> None:
    """Complete `torch.cpu` on machines without CUDA; does nothing with one, and nothing when repeated."""
    if torch.cuda.is_available():
        return
    additions = {
        "memory_allocated": _resident_bytes,
        "memory_reserved": _resident_bytes,
        "max_memory_allocated": _resident_bytes,
        "max_memory_reserved": _resident_bytes,
        "reset_peak_memory_stats": _nothing,
        "mem_get_info": _mem_get_info,
        "empty_cache": _nothing,
        "ipc_collect": _nothing,
        "manual_seed": torch.manual_seed,
        "manual_seed_all": torch.manual_seed,
        "get_rng_state": torch.get_rng_state,
        "set_rng_state": torch.set_rng_state,
        "get_device_name": lambda *_: "cpu",
        "get_device_capability": lambda *_: (0, 0),
        "utilization": _zero,
    }
    for name, function in additions.items():
        if not hasattr(torch.cpu, name):
            setattr(torch.cpu, name, function)


def join_process_group() -> None:
    """Join the ranks of a verl worker through gloo on machines without CUDA; does nothing with one, and nothing when repeated.

    Left to itself verl would name the backend "nccl" or "cpu:gloo,cpu:nccl", which torch refuses there. Reads the RANK and
    WORLD_SIZE that verl gives its workers.
    """
    if torch.cuda.is_available() or dist.is_initialized():
        return
    method = os.environ.get("DIST_INIT_METHOD")  # as verl reads it
    dist.init_process_group("gloo", method, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
