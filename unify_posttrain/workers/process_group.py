"""How a worker joins its ranks.

A gloo group of torch has two threads that run its operations. Both note which one they completed last, in one string and without a
lock (`ProcessGroupGloo::runLoop`, torch 2.9.1). Names of more than 15 characters, such as `ALLGATHER_COALESCED` in FSDP, lie in the
heap. When two operations end together that memory is freed twice, and the process dies later, wherever it next allocates. A single
thread per group cannot collide with itself, and takes the operations in the order in which they were asked for, as ever.
"""

from __future__ import annotations

import os
from datetime import timedelta
from functools import cache, wraps
from typing import Any

import torch.distributed as dist

from unify_posttrain import cpu_compat
from unify_posttrain.runs.listeners import GLOO_INTERFACE
from unify_posttrain.workers.loopback import keep_on_loopback


def join() -> None:
    """Make this process a rank of its worker; does nothing when repeated. Reads the variables that verl gives its workers."""
    cpu_compat.install()
    use_one_thread()
    keep_on_loopback()
    cpu_compat.join_process_group()


@cache
def use_one_thread() -> None:
    """Give one thread to every gloo group that this process will make, whoever makes it: verl, FSDP or torch itself."""
    original = dist.ProcessGroupGloo.__init__

    @wraps(original)
    def made(self: Any, store: dist.Store, rank: int, size: int, timeout: Any = dist.default_pg_timeout) -> None:
        # torch has a second form, which takes options in the place of the timeout.
        options = _options(timeout) if isinstance(timeout, timedelta) else timeout
        options._threads = 1
        original(self, store, rank, size, options)

    dist.ProcessGroupGloo.__init__ = made


def _options(timeout: timedelta) -> Any:
    """What torch makes of a timeout, the devices included."""
    gloo = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    names = [name for name in os.environ.get(GLOO_INTERFACE, "").split(",") if name]
    options._devices = [gloo.create_device(interface=name) for name in names] or [gloo.create_default_device()]
    return options
