"""Ranks of distributed tests: processes from a server that has imported verl once, instead of twice per test."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.context import ForkServerContext
from typing import Any

from torch import multiprocessing as torch_multiprocessing

IMPORTED = ["pytest", "hypothesis", "verl.workers.fsdp_workers", "unify_posttrain.workers.fusion_worker"]


def context() -> ForkServerContext:
    """Whose processes share those imports; the server starts with the first of them, and ends with this process."""
    multiprocessing.set_forkserver_preload(IMPORTED)
    return multiprocessing.get_context("forkserver")


def run_ranks(function: Callable[..., None], *arguments: Any, ranks: int = 2) -> None:
    """Run `function(rank, *arguments)` in as many processes; an exception of one of them is raised here."""
    context()
    torch_multiprocessing.start_processes(function, args=arguments, nprocs=ranks, start_method="forkserver")
