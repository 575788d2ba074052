"""Run commands side by side, each in a session of its own, and end all of them when asked to.

A training starts Ray, and Ray starts a tree of processes in several process groups: what ends a run is therefore its
session, which all of them share. Linux only (/proc).
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

logger = logging.getLogger(__name__)

FINISHED, FAILED, TIMED_OUT, INTERRUPTED = "finished", "failed", "timed out", "interrupted"
KILL_SECONDS, KILL_PAUSE = 30.0, 0.02  # how long, and how often, to look for what SIGKILL has not ended yet
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Job:
    """A command and the file that takes its output; `before` is called right before it starts."""

    name: str
    command: tuple[str, ...]
    log: Path
    before: Callable[[], None] | None = None


@dataclass(frozen=True)
class Limits:
    """parallel: jobs at a time; timeout: of one job; grace: from SIGTERM to SIGKILL; poll: how often to look. Seconds."""

    parallel: int
    timeout: float
    grace: float
    poll: float


@dataclass(frozen=True)
class Ended:
    """How a job ended. `exit_code` is None if it was killed by us."""

    job: Job
    status: str  # FINISHED | FAILED | TIMED_OUT | INTERRUPTED
    exit_code: int | None
    started: str  # ISO 8601, UTC
    seconds: float


@dataclass
class Stop:
    """Set by a signal, looked at between two polls: nothing is interrupted half-way, so no process is started and forgotten."""

    signal: int | None = None


@dataclass
class _Active:
    job: Job
    process: subprocess.Popen
    started: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))
    clock: float = field(default_factory=time.monotonic)

    def ended(self, status: str, exit_code: int | None) -> Ended:
        return Ended(self.job, status, exit_code, self.started, round(time.monotonic() - self.clock, 3))


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """SIGINT, SIGTERM and SIGHUP set the flag while the context is open."""
    stop = Stop()

    def note(number: int, _frame: object) -> None:
        if stop.signal is None:
            logger.warning("%s: ending the runs that are under way", signal.Signals(number).name)
        stop.signal = number

    # A signal that is ignored (nohup) stays ignored.
    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in heeded}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run_jobs(
    jobs: Sequence[Job], environment: Mapping[str, str], limits: Limits, stop: Stop, ended: Callable[[Ended], None]
) -> None:
    """Run `jobs` in order, `limits.parallel` at a time; `ended` is called as each one ends, whatever way.

    When `stop` is set, running jobs are ended as INTERRUPTED and the waiting ones are not started. No process of a job
    survives this function.
    """
    waiting, active = deque(jobs), list[_Active]()
    try:
        while (waiting or active) and stop.signal is None:
            while waiting and len(active) < limits.parallel and stop.signal is None:
                active.append(_start(waiting.popleft(), environment))
            for each in list(active):
                code = each.process.poll()
                overdue = time.monotonic() - each.clock > limits.timeout
                if code is None and not overdue:
                    continue
                active.remove(each)
                end_sessions([each.process], limits.grace)  # also of a job that is over: what it started may not be
                status = TIMED_OUT if code is None else FAILED if code else FINISHED
                ended(each.ended(status, code))
            if active and stop.signal is None:
                time.sleep(limits.poll)
    finally:  # also when `ended` raises
        end_sessions([each.process for each in active], limits.grace)
    for each in active:
        ended(each.ended(INTERRUPTED, None))


def _start(job: Job, environment: Mapping[str, str]) -> _Active:
    if job.before is not None:
        job.before()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "wb") as output:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            start_new_session=True,  # its own session: ours to end as a whole, and a Ctrl-C in the terminal does not reach it
        )
    logger.info("%s: started; log: %s", job.name, job.log)
    return _Active(job, process)


def end_sessions(leaders: Sequence[subprocess.Popen], grace: float) -> None:
    """End every process of the sessions that these processes lead, and of the sessions that their descendants lead (Ray's are):
    SIGTERM to the first, `grace` seconds for the leaders, then SIGKILL to all."""
    below = {leader.pid: descendant_sessions(leader.pid) for leader in leaders if leader.poll() is None}
    for leader in leaders:
        if leader.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(leader.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    for leader in leaders:
        with suppress(subprocess.TimeoutExpired):
            leader.wait(timeout=max(0.0, deadline - time.monotonic()))
    for leader in leaders:
        _kill_sessions(leader, {leader.pid, *below.get(leader.pid, ())})


def _kill_sessions(leader: subprocess.Popen, sessions: set[int]) -> None:
    deadline = time.monotonic() + KILL_SECONDS
    while members := [pid for session in sessions for pid in session_members(session)]:  # one may have forked since the last look
        for pid in members:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        leader.poll()
        if time.monotonic() > deadline:
            logger.warning("processes %s of %d could not be killed", members, leader.pid)
            return
        time.sleep(KILL_PAUSE)
    leader.wait()


def session_members(session: int) -> list[int]:
    """Ids of the living processes of a session (zombies are left to whoever has to reap them)."""
    return [pid for pid, (_, of) in _living().items() if of == session]


def descendant_sessions(pid: int) -> set[int]:
    """The sessions of the processes that a process has started, and of those that they have."""
    living, found, seen = _living(), set[int](), {pid}
    while children := {child for child, (parent, _) in living.items() if parent in seen} - seen:
        seen |= children
        found |= {living[child][1] for child in children}
    return found - {os.getsid(0)}  # never our own


def _living() -> dict[int, tuple[int, int]]:
    """Every process but zombies: its parent and its session."""
    found = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(ProcessLookupError, FileNotFoundError, PermissionError):
            # /proc/PID/stat: pid (name) state ppid pgrp session ...; the name may hold spaces and brackets.
            fields = Path("/proc", entry, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if fields[0] not in "ZX":
                found[int(entry)] = int(fields[1]), int(fields[3])
    return found
