"""The ranks' meeting point at the loopback address, where all ranks of a worker are on one node.

torch's store listens at every interface of the host, whatever address it is told: it is the others that connect to the address. It
takes a socket that listens already, though, so rank 0 brings one that is bound to loopback. Through torch's own registry of
rendezvous schemes and the variable that verl hands to `init_process_group`, so that verl starts its process group as ever.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import register_rendezvous_handler

SCHEME = "loopback"
INIT_METHOD = "DIST_INIT_METHOD"  # read by verl's workers
LOOPBACK = ("127.0.0.1", "localhost")
PATIENCE = timedelta(minutes=30)  # torch's own default, for groups that name none


def keep_on_loopback() -> None:
    """Let this process's group meet at loopback if verl has placed all of its ranks there (MASTER_ADDR); else do nothing."""
    if os.environ.get("MASTER_ADDR") in LOOPBACK:
        _register()
        os.environ.setdefault(INIT_METHOD, f"{SCHEME}://")


@cache
def _register() -> None:
    register_rendezvous_handler(SCHEME, _meet)


def _meet(_url: str, timeout: timedelta = PATIENCE, **_: Any) -> Iterator[tuple[dist.Store, int, int]]:
    """The scheme's handler: (store, rank, world size). Reads the variables that verl gives its workers."""
    rank, size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    listening = None
    if rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as bound:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((LOOPBACK[0], port))
            bound.listen(2 * size + 1)
            listening = bound.detach()  # the store closes it
    yield dist.TCPStore(LOOPBACK[0], port, size, rank == 0, timeout, master_listen_fd=listening), rank, size
    raise RuntimeError(f"{SCHEME}:// has no second meeting; start the run again")
