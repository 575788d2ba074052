"""Running commands side by side, and leaving no process behind."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from unify_posttrain.study.processes import (
    FAILED,
    FINISHED,
    INTERRUPTED,
    TIMED_OUT,
    Ended,
    Job,
    Limits,
    Stop,
    run_jobs,
    session_members,
)

pytestmark = pytest.mark.slow

LIMITS = Limits(parallel=2, timeout=30, grace=1, poll=0.01)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
# Two children, one in a process group of its own, as Ray starts them; the parent waits, or leaves them behind.
FAMILY = """
import os, subprocess, sys, time
children = [subprocess.Popen(["sleep", "600"], preexec_fn=setup) for setup in (None, os.setpgrp)]
open(sys.argv[1], "w").write(" ".join(str(child.pid) for child in children))
os.replace(sys.argv[1], sys.argv[1] + ".done")
time.sleep(float(sys.argv[2]))
"""


def job(tmp_path: Path, name: str, code: str, *arguments: object) -> Job:
    return Job(name, (sys.executable, "-c", code, *map(str, arguments)), tmp_path / f"{name}.log")


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """A zombie is not: what has lost its parent is reaped by init, at its leisure."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def test_status_log_and_order(tmp_path: Path) -> None:
    ended: list[Ended] = []
    jobs = [job(tmp_path, "good", "print('hello')"), job(tmp_path, "bad", "import sys; sys.exit(3)")]
    run_jobs(jobs, os.environ, Limits(1, 30, 1, 0.01), Stop(), ended.append)
    assert [(each.job.name, each.status, each.exit_code) for each in ended] == [("good", FINISHED, 0), ("bad", FAILED, 3)]
    assert (tmp_path / "good.log").read_text() == "hello\n"
    assert all(each.seconds > 0 for each in ended)


def test_no_more_than_parallel_at_a_time(tmp_path: Path) -> None:
    # Each job counts the marks of the running ones, its own included, 0.3 s after it has set its own.
    code = """
import os, sys, time
mark = os.path.join(sys.argv[1], str(os.getpid()))
open(mark, "w").close(); time.sleep(.3)
print(len(os.listdir(sys.argv[1]))); os.remove(mark)
"""
    (tmp_path / "marks").mkdir()
    jobs = [job(tmp_path, f"job{i}", code, tmp_path / "marks") for i in range(4)]
    run_jobs(jobs, os.environ, LIMITS, Stop(), lambda _: None)
    seen = [int((tmp_path / f"job{i}.log").read_text()) for i in range(4)]
    assert max(seen) == 2


def test_timeout_kills_what_ignores_sigterm(tmp_path: Path) -> None:
    ended: list[Ended] = []
    run_jobs([job(tmp_path, "stubborn", STUBBORN)], os.environ, Limits(1, 1.0, 0.2, 0.01), Stop(), ended.append)
    assert [(each.status, each.exit_code) for each in ended] == [(TIMED_OUT, None)]
    assert ended[0].seconds < 20
    assert (tmp_path / "stubborn.log").read_text() == "up\n"


@pytest.mark.parametrize("waits", [600, 0])
def test_children_of_every_process_group_end_with_their_job(tmp_path: Path, waits: int) -> None:
    """Also those that a job which is over has left behind."""
    stop, ended, children = Stop(), list[Ended](), tmp_path / "children"
    jobs = [job(tmp_path, "family", FAMILY, children, waits), job(tmp_path, "waiting", "print('must not start')")]
    if waits:
        written = Path(f"{children}.done")
        threading.Thread(target=lambda: (wait_for(written.exists), setattr(stop, "signal", 15))).start()
    run_jobs(jobs, os.environ, Limits(1, 30, 1, 0.01), stop, ended.append)
    pids = [int(pid) for pid in Path(f"{children}.done").read_text().split()]
    assert len(pids) == 2
    wait_for(lambda: not any(map(alive, pids)), 5)
    assert ended[0].status == (INTERRUPTED if waits else FINISHED)
    assert (tmp_path / "waiting.log").exists() == (waits == 0)


def test_sessions_that_a_job_has_started_end_with_it(tmp_path: Path) -> None:
    """As Ray's daemons: sessions of their own, so that they outlive a signal to the job's process group."""
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "open(sys.argv[1], 'w').write(str(child.pid))\n"
        "time.sleep(600)\n"
    )
    stop, ended, written = Stop(), list[Ended](), tmp_path / "child"
    threading.Thread(
        target=lambda: (wait_for(lambda: written.exists() and written.read_text()), setattr(stop, "signal", 15))
    ).start()
    run_jobs([job(tmp_path, "apart", code, written)], os.environ, Limits(1, 30, 1, 0.01), stop, ended.append)
    wait_for(lambda: not alive(int(written.read_text())), 5)
    assert ended[0].status == INTERRUPTED


def test_nothing_survives_an_error_in_the_caller(tmp_path: Path) -> None:
    children = tmp_path / "children"

    def fail(_: Ended) -> None:
        wait_for(Path(f"{children}.done").exists)
        raise OSError("disk full")

    jobs = [job(tmp_path, "family", FAMILY, children, 600), job(tmp_path, "quick", "pass")]
    with pytest.raises(OSError, match="disk full"):
        run_jobs(jobs, os.environ, LIMITS, Stop(), fail)
    wait_for(lambda: not any(alive(int(pid)) for pid in Path(f"{children}.done").read_text().split()), 5)


def test_session_members() -> None:
    assert os.getpid() in session_members(os.getsid(0))
    assert session_members(2**22 + 1) == []  # above the greatest process id
