"""Processes of a run that a signal to its process group must not reach.

`timeout`, job limits and Ctrl-C on a terminal signal a whole process group. The driver is to finish its step then and save it, for
which it needs Ray's daemons, the workers that they start, and the processes that load data. Those get sessions of their own.
They still end with the driver: Ray asks the kernel to kill its daemons when it dies, workers end with their daemon, and torch's
loading processes watch their parent.

What signals every process of a job by itself (Slurm at a time limit without `--signal=B:…`, systemd) reaches them all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray._private import services


@contextmanager
def own_sessions() -> Iterator[None]:
    """Let `ray.init` start its daemons, which one class of Ray's starts, in sessions of their own. Ray has no setting for that."""
    theirs = services.ConsolePopen

    class Detached(theirs):  # type: ignore[misc, valid-type]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "start_new_session": True})

    services.ConsolePopen = Detached
    try:
        yield
    finally:
        services.ConsolePopen = theirs


def own_session(_worker: int) -> None:
    """`worker_init_fn` of a data loader."""
    os.setsid()
