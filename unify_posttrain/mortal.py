"""Processes that do not outlive the one that forked them."""

from __future__ import annotations

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent: int | None = None) -> None:
    """Be killed when the thread that forked this process ends, however it ends; at once if it has already. Linux.

    Args:
        parent: the process that forked this one, as it was asked before; it may have ended since.
    """
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent is not None and os.getppid() != parent:
        os._exit(1)
