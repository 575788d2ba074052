"""Processes of a run that a signal to its process group must not reach.

`timeout`, job limits and Ctrl-C on a terminal signal a whole process group. The driver is to finish its step then and save it, for
which it needs Ray's daemons, the workers that they start, and the processes that load data. Those get sessions of their own.
They still end with the driver: Ray asks the kernel to kill its daemons when it dies, workers end with their daemon, and torch's
loading processes watch their parent.

What signals every process of a job by itself (Slurm at a time limit without `--signal=B:…`, systemd) reaches them all the same.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any

from ray._private import services

from unify_posttrain.runs.signals import STOP_SIGNALS


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


class ApartProcess(ForkProcess):
    """A forked process in a session of its own, from its first moment: the signals are held back while it is made."""

    def start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def run(self) -> None:
        os.setsid()
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # forgets what arrived before
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        super().run()


class ApartContext(ForkContext):
    """`multiprocessing` with such processes."""

    Process = ApartProcess


def apart(loader: Any) -> Any:
    """The data loader, with its processes in sessions of their own: torch ends the run if one of them dies."""
    if loader.num_workers > 0:
        loader.multiprocessing_context = ApartContext()
    return loader
