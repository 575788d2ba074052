"""A worker of `unify_posttrain.rewards.pool`:

    python -m unify_posttrain.rewards.worker MODULE:FUNCTION TIMEOUT_SECONDS MEMORY_MB free|confined [beyond ARGUMENT]

Reads frames from stdin, each a length and a pickle of (number, items), and writes a line `[number, value, fault, detail]` per item
to stdout, in order. The process itself is the supervisor: it imports the function, then only forks children and waits for them. The
child reads, works and writes. With `beyond ARGUMENT` the memory is what a process may take beyond its imports, and MODULE:FUNCTION
makes the function of ARGUMENT, which is JSON. `confined`: children only compute (`unify_posttrain.rewards.confinement`).
"""

from __future__ import annotations

import gc
import importlib
import json
import mmap
import os
import pickle
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from unify_posttrain.mortal import die_with_parent
from unify_posttrain.rewards.confinement import LATE, LateImports, confine

DETAIL_CHARACTERS = 300  # a reply without a value has to fit one atomic write
ROOM_MB = 64  # what a function must at least be left
GONE = 0  # exit code of a child whose input has ended
LENGTH = struct.Struct("q")
IDLE, READING = 0, -1  # what a child is at, if not at an item, which has a number from 1
FLUSH_SECONDS = 0.02  # a reply waits no longer for others to be written with it
UNREAD = 0  # in place of an item's number: none of the frame was worked on
AGAIN = "again"  # in place of a fault: a module was missing and is there now, so the item has to be sent once more


def main(arguments: list[str]) -> None:
    """Serve until stdin ends."""
    target, timeout, memory_mb = arguments[0], float(arguments[1]), int(arguments[2])
    # What the function prints must not get between the replies.
    replies = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    try:
        function = _load(target, *arguments[5:])
        limit_mb = _limit_mb(memory_mb, beyond=len(arguments) > 4)
    except BaseException as error:  # a module may do anything when it is imported, SystemExit included
        if error.__cause__ is not None or not isinstance(error, ValueError):  # else its message says all
            traceback.print_exception(error.__cause__ or error)
        _write(replies, {"failed": f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else str(error)})
        sys.exit(1)
    progress, late = Progress(replies), LateImports() if arguments[3] == "confined" else None
    _write(replies, {"ready": True})
    while True:
        gc.collect()
        gc.freeze()  # a child that searched what is imported for garbage would copy all of it
        pid = os.fork()
        if pid == 0:
            _serve(function, timeout, memory_mb, limit_mb, progress, late)
        _, status = os.waitpid(pid, 0)
        code, number = os.waitstatus_to_exitcode(status), progress.number
        wanted = late.serve() if late is not None and code == LATE else ""
        if wanted:
            progress.number = IDLE
            progress.reply(max(number, UNREAD), b"null", AGAIN, wanted)
            progress.flush()
            continue
        if code == GONE and number == IDLE:  # a function may exit with any code
            return
        if number == READING:
            progress.reply(UNREAD, b"null", *_cause(code, timeout))
            progress.flush()
            return  # half of a frame is left in the pipe: the caller starts another supervisor
        if number != IDLE:
            progress.number = IDLE
            progress.reply(number, b"null", *_cause(code, timeout))
        progress.flush()


def _load(target: str, argument: str | None = None) -> Callable[[Any], Any]:
    module, _, name = target.partition(":")
    function = getattr(importlib.import_module(module), name)
    return function if argument is None else function(json.loads(argument))


def _limit_mb(memory_mb: int, beyond: bool) -> int:
    """The bound of the address space, which holds what the imports have taken already."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    used = pages * resource.getpagesize() >> 20
    if beyond:
        return used + memory_mb
    if memory_mb < used + ROOM_MB:
        raise ValueError(f"memory_mb={memory_mb}: the imports alone take {used} MB; set it to at least {used + ROOM_MB}")
    return memory_mb


def _cause(code: int, timeout: float) -> tuple[str, str]:
    if code == -signal.SIGALRM:
        return "timeout", f"no result within {timeout} s"
    # SIGKILL: the kernel's own answer to a machine without memory. Others: stack overflow, a fault in C code, an exit.
    return "crash", f"the process ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}"


class Progress:
    """What a child is at, and the replies that it has not written yet; in memory that its supervisor shares, so that nothing of it
    is lost when it dies. A line of its own for every reply would wake the caller for every item."""

    ROOM = 1 << 16

    def __init__(self, replies: BinaryIO) -> None:
        self._replies = replies
        self._memory = mmap.mmap(-1, 2 * LENGTH.size + self.ROOM)  # number, length of the replies, the replies
        self._flushed = time.monotonic()

    @property
    def number(self) -> int:
        """Of the item, or IDLE, or READING."""
        return int(LENGTH.unpack_from(self._memory)[0])

    @number.setter
    def number(self, number: int) -> None:
        LENGTH.pack_into(self._memory, 0, number)

    def reply(self, number: int, value: bytes, fault: str | None, detail: str) -> None:
        """Note the reply to an item; it is written with others, soon."""
        rest = json.dumps([fault, detail[:DETAIL_CHARACTERS]]).encode("ascii")
        line = b"[%d, %b, %b\n" % (number, value, rest[1:])
        (length,) = LENGTH.unpack_from(self._memory, LENGTH.size)
        if length + len(line) > self.ROOM:
            self.flush()
            length = 0
        if len(line) > self.ROOM:
            _send(self._replies, line)
            return
        start = 2 * LENGTH.size + length
        self._memory[start : start + len(line)] = line
        LENGTH.pack_into(self._memory, LENGTH.size, length + len(line))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what was noted."""
        (length,) = LENGTH.unpack_from(self._memory, LENGTH.size)
        LENGTH.pack_into(self._memory, LENGTH.size, 0)
        _send(self._replies, self._memory[2 * LENGTH.size : 2 * LENGTH.size + length])
        self._flushed = time.monotonic()


def _serve(
    function: Callable[[Any], Any], timeout: float, memory_mb: int, limit_mb: int, progress: Progress, late: LateImports | None
) -> None:
    """A child's life; it never returns."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_AS, (limit_mb << 20, limit_mb << 20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    folder = os.open(".", os.O_RDONLY)
    stdin = sys.stdin.buffer
    if late is not None:
        late.install()
        confine()
    while header := stdin.read(LENGTH.size):
        progress.number = READING
        frame = stdin.read(*LENGTH.unpack(header))
        progress.number = IDLE
        try:
            first, items = pickle.loads(frame)
        except BaseException as error:  # a class that cannot be imported here, too little memory
            progress.reply(UNREAD, b"null", "error", f"its arguments cannot be read: {_described(error)}")
            first, items = 0, []
        for number, item in enumerate(items, first):
            progress.number = number
            os.fchdir(folder)  # whatever the item before did
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, timeout)
            value, fault, detail = b"null", None, ""
            try:
                value = json.dumps(function(item)).encode("ascii")
            except MemoryError:
                fault, detail = "memory", f"more than {memory_mb} MB"
            except BaseException as error:  # whatever a library makes of text that no one foresaw; some timeouts are no Exception
                fault, detail = "error", _described(error)
            signal.setitimer(signal.ITIMER_REAL, 0)
            progress.number = IDLE
            progress.reply(number, value, fault, detail)
            if fault == "memory":
                os._exit(1)  # what is left of the memory may be in pieces; the next child starts afresh
        progress.flush()
    os._exit(GONE)


def _described(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"
    except BaseException:  # its own text may raise as well
        return type(error).__name__


def _write(replies: BinaryIO, content: Any) -> None:
    _send(replies, json.dumps(content).encode("ascii") + b"\n")


def _send(replies: BinaryIO, data: bytes) -> None:
    while data:
        data = data[replies.write(data) :]


if __name__ == "__main__":
    main(sys.argv[1:])
