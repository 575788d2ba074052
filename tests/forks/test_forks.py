"""A forked command is what `subprocess` would have started: arguments, environment, folder, streams, session, signals, code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import forks
from tests.forks import client

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not client.known_libraries(), reason=f"commands are forked with verl {client.VERL} alone"),
]
CONFIGURATION = [sys.executable, "-m", "unify_posttrain.train", "--cfg", "job", "--resolve"]
TWINS = """
import os
from tests.forks.server import preload
from ray._raylet import JobID, TaskID

preload()
for _ in range(2):
    if os.fork() == 0:
        print(TaskID.for_fake_task(JobID.from_int(1)).hex(), flush=True)
        os._exit(0)
    os.wait()
"""
TRAIN = [sys.executable, "-m", "unify_posttrain.train", "+dry_run=true", "model=qwen2_5_7b"]


def environment(home: Path, **more: str) -> dict[str, str]:
    return {**client.server().environment, "UNIFY_HOME": str(home), **more}


def forked(command: list[str], **how: object) -> subprocess.CompletedProcess[str]:
    with forks.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how) as process:
        assert process.forked
        output, errors = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_it_prints_and_ends_as_the_real_command(tmp_path: Path) -> None:
    """Paths show the environment and the folder, a mistake the exit code and the other stream."""
    for more in (["trainer.run_dir=here", "fusion.seed=7"], ["algorithm=hptt"]):
        command = [*CONFIGURATION, *more]
        how = {"env": environment(tmp_path / "home"), "cwd": tmp_path}
        real, ours = subprocess.run(command, capture_output=True, text=True, **how), forked(command, **how)  # type: ignore[call-overload]
        assert (ours.returncode, ours.stdout, ours.stderr) == (real.returncode, real.stdout, real.stderr)
    assert real.returncode == 1 and "did you mean hpt?" in real.stderr


def test_it_is_a_child_with_a_session_and_dies_of_signals(tmp_path: Path) -> None:
    with forks.Popen(TRAIN, env=environment(tmp_path), cwd=tmp_path, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        assert process.forked
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert f"PPid:\t{os.getpid()}" in status
        while os.getsid(process.pid) != process.pid and process.poll() is None:  # its first act
            time.sleep(0.01)
        assert os.readlink(f"/proc/{process.pid}/fd/1") == os.devnull
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize(
    "different",
    [{"HF_HOME": "/elsewhere"}, {"OMP_NUM_THREADS": "2"}, {"RAY_DEDUP_LOGS": "1"}, {"PYTHONHASHSEED": "0"}],
    ids=lambda different: next(iter(different)),
)
def test_what_libraries_read_while_they_are_imported_gets_a_process_of_its_own(tmp_path: Path, different: dict[str, str]) -> None:
    with forks.Popen(
        [sys.executable, "-m", "unify_posttrain.train", "--version"],
        env=environment(tmp_path, **different),
        stderr=subprocess.DEVNULL,
    ) as process:
        assert not process.forked
        process.kill()


def test_so_do_other_programs() -> None:
    assert not forks.Popen([sys.executable, "-c", "pass"]).wait(60)


def test_ray_gives_siblings_different_identifiers() -> None:
    """Tasks of one identifier from two reward workers ended the server that both had asked."""
    command = [sys.executable, "-c", TWINS]
    first, second = subprocess.run(
        command, cwd=client.ROOT, env=client.server().environment, check=True, capture_output=True, text=True
    ).stdout.split()
    assert first != second
