"""Run a function in processes that can be killed: a hang, a crash or a memory bomb costs one item its result and nothing else.

A pool holds `workers` supervisors (`unify_posttrain.rewards.worker`). A supervisor imports the function once and forks a child
that does the work; when the child dies, it says so and forks the next one, which takes milliseconds because nothing is imported
again. Many items travel in one message; those that a dead child had not begun are sent once more.

The limits are the kernel's: an interval timer that nobody catches, and a bound of the address space. Hence no item can outwit
them, be it stuck in C code or in a loop that swallows exceptions, and hence no thread of the caller has to watch.

Nothing is left behind: a pool that nobody holds any more ends its processes, and a child ends when its supervisor or the caller's
end of the pipe is gone, at the latest after the timeout.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import LifoQueue
from typing import Any

from unify_posttrain.rewards.confinement import sparse_environment
from unify_posttrain.rewards.worker import AGAIN, LENGTH, UNREAD

logger = logging.getLogger(__name__)

START_SECONDS = 300.0  # for a supervisor's imports, on a machine that is busy with something else
GRACE_SECONDS = 30.0  # a supervisor that says nothing for so much longer than the timeout is replaced
FAULTS = ("timeout", "crash", "memory", "error")
FATAL = ("timeout", "crash", "memory")  # the child is gone, and with it what it had been sent besides
SHARE = 4  # a worker gets its items in so many portions at least, so that one that is slow leaves the others to the rest
PORTION = 64  # items that are sent at once at most
READ = 1 << 16


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


class WorkerStartError(RuntimeError):
    """A worker cannot start; `reason` is its own word on it."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def portion(items: int, workers: int) -> int:
    """How many of some items a worker is sent at once."""
    return max(1, min(PORTION, -(-items // (SHARE * workers))))


class KillablePool:
    """A pool of processes; its methods may be called from several threads at once.

    Args:
        target: `module:function`; the function takes what can be pickled and returns what JSON can say.
        workers: processes, at least 1. They are started when first needed.
        timeout_seconds: wall-clock time of one item.
        memory_mb: address space of one process, imports included.
        argument: JSON-ready; given, the target is called with it once and makes the function, and `memory_mb` is what a process may
            take beyond its imports.
        start_seconds: for a supervisor's imports.
        confined: the function computes and does nothing else: it opens no file and no socket and knows no variable of the
            environment (`unify_posttrain.rewards.confinement`). What it imports late has to belong to a library that its module
            imports, or to Python.

    Raises:
        ValueError: a setting out of range, or a target that is not `module:function`.
    """

    def __init__(
        self,
        target: str,
        workers: int,
        timeout_seconds: float,
        memory_mb: int,
        argument: Any = None,
        start_seconds: float = START_SECONDS,
        confined: bool = False,
    ) -> None:
        if target.count(":") != 1:
            raise ValueError(f"target={target!r} must be module:function")
        for key, value in (("workers", workers), ("timeout_seconds", timeout_seconds), ("memory_mb", memory_mb)):
            if not value > 0:
                raise ValueError(f"{key}={value} must be above 0")
        self.target, self.workers = target, int(workers)
        self.timeout_seconds, self.memory_mb = float(timeout_seconds), int(memory_mb)
        job = _Job(target, self.timeout_seconds, self.memory_mb, argument, float(start_seconds), confined)
        self._all = [_Worker(job) for _ in range(self.workers)]
        # Last in, first out: a few items at a time start no more workers than they need.
        self._free: LifoQueue[_Worker] = LifoQueue()
        for worker in self._all:
            self._free.put(worker)
        # Knows the workers and not the pool, so that it does not keep alive what it waits for; runs at the end of Python, too.
        self._end = weakref.finalize(self, _end, job, self._all, os.getpid())

    @property
    def closed(self) -> bool:
        """Whether its processes have been ended, for good."""
        return not self._end.alive

    def run(self, item: Any) -> Outcome:
        """One item; waits for a free worker.

        Raises:
            RuntimeError: the pool is closed, or its workers cannot start (the target cannot be imported).
        """
        return self.send([item])[0]

    def map(self, items: Iterable[Any]) -> list[Outcome]:
        """All items, side by side; results in the order of the items. Raises as :meth:`run`."""
        items = list(items)
        size = portion(len(items), self.workers)
        portions = [items[start : start + size] for start in range(0, len(items), size)]
        if len(portions) < 2:
            return self.send(items) if items else []
        with ThreadPoolExecutor(min(self.workers, len(portions)), thread_name_prefix="killable-pool") as threads:
            return [outcome for outcomes in threads.map(self.send, portions) for outcome in outcomes]

    def send(self, items: Sequence[Any]) -> list[Outcome]:
        """All items to one worker, in one message; raises as :meth:`run`."""
        worker = self._free.get()
        try:
            if self.closed:
                raise RuntimeError("the pool is closed")
            return worker.run(items)
        finally:
            self._free.put(worker)

    def pids(self) -> Sequence[int]:
        """Supervisors that run now."""
        return [worker.process.pid for worker in self._all if worker.process is not None]

    def close(self) -> None:
        """End all workers, whatever they are at."""
        self._end()

    def __enter__(self) -> KillablePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class _Job:
    """What all workers of a pool do; see `KillablePool`."""

    target: str
    timeout_seconds: float
    memory_mb: int
    argument: Any
    start_seconds: float
    confined: bool
    ended: bool = False


def _end(job: _Job, workers: Sequence[_Worker], owner: int) -> None:
    """End the workers of a pool, in the process that started them: one that was forked from it has them by name only."""
    job.ended = True
    if os.getpid() == owner:
        for worker in workers:
            worker.stop()


class _Worker:
    """One supervisor and the pipe to it; used by one thread at a time."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        self.process: subprocess.Popen[bytes] | None = None
        self.number = 0
        self._received = b""
        self._stopping = threading.Lock()

    def run(self, items: Sequence[Any]) -> list[Outcome]:
        """An outcome per item, in their order."""
        outcomes: list[Outcome] = []
        while len(outcomes) < len(items):
            outcomes += self._exchange(items[len(outcomes) :])
        return outcomes

    def _exchange(self, items: Sequence[Any]) -> list[Outcome]:
        """Send items; the outcomes of the first ones, up to one that took the child with it or has to be sent once more."""
        if self.job.ended:
            return [Outcome(fault="crash", detail="the pool was closed")] * len(items)
        process = self.process or self._start()
        first, self.number = self.number + 1, self.number + len(items)
        try:
            frame = pickle.dumps((first, list(items)), pickle.HIGHEST_PROTOCOL)
        except Exception as error:  # whatever an object says against it; nested too deep
            return [Outcome(fault="error", detail=f"cannot be sent: {error}")] if len(items) == 1 else self._exchange(items[:1])
        outcomes: list[Outcome] = []
        try:
            process.stdin.write(LENGTH.pack(len(frame)) + frame)
            process.stdin.flush()
            for number in range(first, first + len(items)):
                line = self._line(process, self.job.timeout_seconds + GRACE_SECONDS)
                replied, value, fault, detail = json.loads(line) if line else (None, None, None, "")
                if fault == AGAIN:
                    return outcomes
                if replied == UNREAD and not outcomes:
                    return self._unread(items, Outcome(None, fault, detail))
                if replied != number:
                    break
                outcomes.append(Outcome(value, fault, detail))
                if fault in FATAL:
                    return outcomes
            else:
                return outcomes
        except (OSError, ValueError):  # the pipe broke; or `close` was called beside us
            logger.debug("the pipe to worker %d broke", process.pid)
        self.stop()
        return [*outcomes, Outcome(fault="crash", detail="the worker process was killed from outside, or does not answer")]

    def _unread(self, items: Sequence[Any], outcome: Outcome) -> list[Outcome]:
        """Nothing of a message could be read. One of its items is to blame, so they go one by one, to a supervisor that lives."""
        if outcome.fault in FATAL:
            self.stop()
        return [outcome] if len(items) == 1 else self._exchange(items[:1])

    def _start(self) -> subprocess.Popen[bytes]:
        job = self.job
        command = [sys.executable, "-m", "unify_posttrain.rewards.worker", job.target]
        command += [str(job.timeout_seconds), str(job.memory_mb), "confined" if job.confined else "free"]
        if job.argument is not None:
            command += ["beyond", json.dumps(job.argument)]
        # The target has to be found as here, wherever the caller's path came from; and a worker is one thread.
        paths = [str(Path(__file__).resolve().parents[2]), *(path or os.getcwd() for path in sys.path)]
        inherited = sparse_environment(os.environ) if job.confined else os.environ
        environment = {**inherited, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,  # Ctrl-C is the caller's business
        )
        self.process, self.number, self._received = process, 0, b""
        line = self._line(process, job.start_seconds)
        said = json.loads(line) if line else {"failed": f"it ended, or took more than {job.start_seconds:g} s"}
        if "failed" in said:
            self.stop()
            raise WorkerStartError(f"a worker for {job.target} did not start: {said['failed']}", said["failed"])
        if job.ended:  # meanwhile
            self.stop()
        return process

    def _line(self, process: subprocess.Popen[bytes], seconds: float) -> bytes:
        """The next line, or b"" if none came in time or the process is gone."""
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            # Through the file, never by its number: beside a `close` that may be another file's already.
            ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            part = process.stdout.read1(READ) if ready else b""
            if not part:
                return b""
            self._received += part
        line, _, self._received = self._received.partition(b"\n")
        return line

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
