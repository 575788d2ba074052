"""A worker of `unify_posttrain.rewards.pool`: `python -m unify_posttrain.rewards.worker MODULE:FUNCTION TIMEOUT_SECONDS MEMORY_MB`.

Reads lines `[number, item]` from stdin and writes lines `[number, value, fault, detail]` to stdout, one for one. The process itself
is the supervisor: it imports the function, then only forks children and waits for them. The child reads, works and writes.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
DETAIL_CHARACTERS = 300  # a reply without a value has to fit one atomic write
ROOM_MB = 64  # what a function must at least be left
GONE = 0  # exit code of a child whose input has ended


def main(arguments: list[str]) -> None:
    """Serve until stdin ends."""
    target, timeout, memory_mb = arguments[0], float(arguments[1]), int(arguments[2])
    # What the function prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    _check_memory(memory_mb)
    working_on = mmap.mmap(-1, 8)  # number of the item that the child is at, 0 for none; shared with the supervisor
    replies.write(b"ready\n")
    while True:
        pid = os.fork()
        if pid == 0:
            _serve(function, timeout, memory_mb, working_on, replies)
        _, status = os.waitpid(pid, 0)
        if os.waitstatus_to_exitcode(status) == GONE:
            return
        (number,) = struct.unpack("q", working_on[:8])
        if number:
            fault, detail = _cause(os.waitstatus_to_exitcode(status), timeout)
            working_on[:8] = struct.pack("q", 0)
            _reply(replies, number, None, fault, detail)


def _check_memory(memory_mb: int) -> None:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used = pages * resource.getpagesize() >> 20
    if memory_mb < used + ROOM_MB:
        sys.exit(f"memory_mb={memory_mb}: the imports alone take {used} MB; set it to at least {used + ROOM_MB}")


def _cause(code: int, timeout: float) -> tuple[str, str]:
    if code == -signal.SIGALRM:
        return "timeout", f"no result within {timeout} s"
    # SIGKILL: the kernel's own answer to a machine without memory. Others: stack overflow, a fault in C code, an exit.
    return "crash", f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


def _serve(function: Callable[[Any], Any], timeout: float, memory_mb: int, working_on: mmap.mmap, replies: BinaryIO) -> None:
    """A child's life; it never returns."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_AS, (memory_mb << 20, memory_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin.buffer:
        number, item = json.loads(line)
        working_on[:8] = struct.pack("q", number)
        signal.setitimer(signal.ITIMER_REAL, timeout)
        value, fault, detail = None, None, ""
        try:
            value = json.loads(json.dumps(function(item)))
        except MemoryError:
            fault, detail = "memory", f"more than {memory_mb} MB"
        except BaseException as error:  # whatever a library makes of text that no one foresaw; some timeouts are no Exception
            fault, detail = "error", f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_REAL, 0)
        working_on[:8] = struct.pack("q", 0)
        _reply(replies, number, value, fault, detail)
        if fault == "memory":
            os._exit(1)  # what is left of the memory may be in pieces; the next child starts afresh
    os._exit(GONE)


def _reply(replies: BinaryIO, number: int, value: Any, fault: str | None, detail: str) -> None:
    data = json.dumps([number, value, fault, detail[:DETAIL_CHARACTERS]]).encode("ascii") + b"\n"
    while data:
        data = data[replies.write(data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
