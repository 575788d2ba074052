"""Run a function in processes that can be killed: a hang, a crash or a memory bomb costs one item its result and nothing else.

A pool holds `workers` supervisors (`unify_posttrain.rewards.worker`). A supervisor imports the function once and forks a child
that does the work; when the child dies, it says so and forks the next one, which takes milliseconds because nothing is imported
again. The limits are the kernel's: an interval timer that nobody catches, and a bound of the address space. Hence no item can
outwit them, be it stuck in C code or in a loop that swallows exceptions, and hence no thread of the caller has to watch.

Nothing is left behind: a child ends when its supervisor or the caller's end of the pipe is gone, at the latest after the timeout.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any

logger = logging.getLogger(__name__)

START_SECONDS = 300.0  # for a supervisor's imports, on a machine that is busy with something else
GRACE_SECONDS = 30.0  # a supervisor that says nothing for so much longer than the timeout is replaced
FAULTS = ("timeout", "crash", "memory", "error")


@dataclass(frozen=True)
class Outcome:
    """What became of an item.

    Attributes:
        value: what the function returned; None after a fault.
        fault: None, or one of FAULTS: over the time limit, died, over the memory limit, raised.
        detail: of a fault, for people.
    """

    value: Any = None
    fault: str | None = None
    detail: str = ""


class KillablePool:
    """A pool of processes; its methods may be called from several threads at once.

    Args:
        target: `module:function`; the function takes and returns what JSON can say.
        workers: processes, at least 1. They are started when first needed.
        timeout_seconds: wall-clock time of one item.
        memory_mb: address space of one process, imports included.

    Raises:
        ValueError: a setting out of range, or a target that is not `module:function`.
    """

    def __init__(self, target: str, workers: int, timeout_seconds: float, memory_mb: int) -> None:
        if target.count(":") != 1:
            raise ValueError(f"target={target!r} must be module:function")
        for key, value in (("workers", workers), ("timeout_seconds", timeout_seconds), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ValueError(f"{key}={value} must be above 0")
        self.target, self.workers = target, int(workers)
        self.timeout_seconds, self.memory_mb = float(timeout_seconds), int(memory_mb)
        self._free: LifoQueue[_Worker] = (
            LifoQueue()
        )  # last in, first out: a few items at a time start no more workers than they need
        for _ in range(self.workers):
            self._free.put(_Worker(self))
        self._all = list(self._free.queue)
        self._closed = False
        atexit.register(self.close)

    def run(self, item: Any) -> Outcome:
        """One item; waits for a free worker.

        Raises:
            RuntimeError: the pool is closed, or its workers cannot start (the target cannot be imported).
        """
        worker = self._free.get()
        try:
            if self._closed:
                raise RuntimeError("the pool is closed")
            return worker.run(item)
        finally:
            self._free.put(worker)

    def map(self, items: Iterable[Any]) -> list[Outcome]:
        """All items, side by side; results in the order of the items."""
        items = list(items)
        if len(items) < 2:
            return [self.run(item) for item in items]
        with ThreadPoolExecutor(min(self.workers, len(items)), thread_name_prefix="killable-pool") as threads:
            return list(threads.map(self.run, items))

    def pids(self) -> Sequence[int]:
        """Supervisors that run now."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def close(self) -> None:
        """End all workers, whatever they are at."""
        self._closed = True
        for worker in self._all:
            worker.stop()
        atexit.unregister(self.close)

    def __enter__(self) -> KillablePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """One supervisor and the pipe to it; used by one thread at a time."""

    def __init__(self, pool: KillablePool) -> None:
        self.pool = pool
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self._stopping = threading.Lock()

    def run(self, item: Any) -> Outcome:
        process = self.process or self._start()
        self.number += 1
        request = json.dumps([self.number, item]).encode("ascii") + b"\n"
        try:
            process.stdin.write(request)
            process.stdin.flush()
            line = self._line(process, self.pool.timeout_seconds + GRACE_SECONDS)
        except (BrokenPipeError, ConnectionResetError, ValueError):  # the last: `close` was called beside us
            line = b""
        if not line.endswith(b"\n"):
            self.stop()
            return Outcome(fault="crash", detail="the worker process was killed from outside, or does not answer")
        number, value, fault, detail = json.loads(line)
        if number != self.number:
            self.stop()
            return Outcome(fault="crash", detail=f"the worker answered item {number} instead of {self.number}")
        return Outcome(value, fault, detail)

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "unify_posttrain.rewards.worker", self.pool.target]
        command += [str(self.pool.timeout_seconds), str(self.pool.memory_mb)]
        # The target has to be found as here, wherever the caller's path came from; and a worker is one thread.
        paths = [str(Path(__file__).resolve().parents[2]), *(path or os.getcwd() for path in sys.path)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is the caller's business
        )
        self.process, self.number = process, 0
        if self._line(process, START_SECONDS) != b"ready\n":
            self.stop()
            raise RuntimeError(f"a worker for {self.pool.target} did not start; what it wrote to stderr says why")
        return process

    @staticmethod
    def _line(process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """The next line, or b"" if none came in time or the process is gone. A line is written at once, so it is there or not."""
        ready, _, _ = select.select([process.stdout], [], [], seconds)
        return process.stdout.readline() if ready else b""

    def stop(self) -> None:
        with self._stopping:
            process, self.process = self.process, None
        if process is None:
            return
        try:
            os.killpg(process.pid, signal.SIGKILL)  # supervisor and child: a session of their own
        except ProcessLookupError:
            logger.debug("worker %d was gone already", process.pid)
        process.wait()
        for pipe in (process.stdin, process.stdout):
            try:
                pipe.close()
            except BrokenPipeError:
                logger.debug("worker %d left unread input", process.pid)
