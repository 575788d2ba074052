"""One run at a time in a folder, held by a process and by nothing that it leaves behind."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import lock
from unify_posttrain.runs.lock import FolderInUseError, folders_locked

HOLDER = """
import os, sys, time
from omegaconf import OmegaConf
from unify_posttrain.runs.lock import folders_locked
trainer = {"run_dir": sys.argv[1], "default_local_dir": sys.argv[2]}
with folders_locked(OmegaConf.create({"trainer": trainer})):
    child = os.fork() if sys.argv[3] == "fork" else None
    if child != 0:
        print(child, flush=True)
    time.sleep(60)
"""


def config(run_dir: Path, checkpoints: Path | None = None) -> DictConfig:
    places = {"run_dir": str(run_dir), "default_local_dir": str(checkpoints or run_dir / "checkpoints")}
    return OmegaConf.create({"trainer": places})


def holder(run_dir: Path, checkpoints: Path, fork: str = "alone") -> tuple[subprocess.Popen, str]:
    command = [sys.executable, "-c", HOLDER, str(run_dir), str(checkpoints), fork]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    return process, process.stdout.readline().strip()


def test_a_second_process_is_refused_by_name_and_the_lock_ends_with_its_holder(tmp_path: Path) -> None:
    run, disk = tmp_path / "run", tmp_path / "disk"
    process, _ = holder(run, disk)
    try:
        who = rf"is in use: process {process.pid} on host {socket.gethostname()} \(since .*\) trains there"
        with (
            pytest.raises(FolderInUseError, match=rf"trainer\.run_dir={run} {who}.*trainer\.experiment_name"),
            folders_locked(config(run)),
        ):
            pytest.fail("held twice")
        with pytest.raises(FolderInUseError, match=r"trainer\.default_local_dir"), folders_locked(config(tmp_path / "other", disk)):
            pytest.fail("held twice")
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with folders_locked(config(run, disk)):
        assert json.loads((run / lock.LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (run / lock.LOCK_FILE).read_text() == "", "nobody"


def test_what_a_dead_run_has_forked_holds_nothing(tmp_path: Path) -> None:
    process, child = holder(tmp_path / "run", tmp_path / "run" / "checkpoints", "fork")
    process.send_signal(signal.SIGKILL)
    process.wait()
    try:
        with folders_locked(config(tmp_path / "run")):
            os.kill(int(child), 0)  # it lives
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_disk_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", no_lock)
    with caplog.at_level(logging.WARNING), folders_locked(config(tmp_path)):
        assert "cannot be locked" in caplog.text and "no second run" in caplog.text
