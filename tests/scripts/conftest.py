"""A cluster that is not there: programs with the names of Slurm's, Ray's and Python's, which note how they are called."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAND_INS = Path(__file__).parent / "stand_ins"
SLURM = ROOT / "exp_scripts" / "slurm"
PATIENCE = 60  # seconds for what takes one on an idle machine


@dataclass
class Cluster:
    """A job of a cluster of stand-ins, and what was called in it.

    Attributes:
        folder: with the programs (bin), the calls (calls.jsonl) and the nodes that are up (up/).
        environment: of the next job.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen] = field(default_factory=list)

    def start(self, job: str, *command: str, **environment: str) -> subprocess.Popen:
        """Start a batch script as Slurm does: a copy of it, in the folder of submission."""
        copy = self.folder / "slurm_script"
        copy.write_text((SLURM / job).read_text())
        process = subprocess.Popen(
            ["bash", str(copy), *command],
            cwd=ROOT,
            env=self.environment | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, job: str, *command: str, **environment: str) -> tuple[int, str]:
        """Exit code and messages of a job."""
        return self.end(self.start(job, *command, **environment))

    def end(self, process: subprocess.Popen) -> tuple[int, str]:
        out, errors = process.communicate(timeout=PATIENCE)
        return process.returncode, out + errors

    def calls(self, program: str) -> list[list[str]]:
        """The arguments of every call of a program, in order."""
        log = self.folder / "calls.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return [call["arguments"] for call in map(json.loads, lines) if call["program"] == program]

    def note(self, program: str) -> dict:
        """The last call of a program, with what it saw of the environment."""
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call["program"] == program][-1]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.02)

    def processes(self) -> list[int]:
        """The stand-ins that run."""
        return [int(path.name) for path in (self.folder / "pids").iterdir() if _alive(int(path.name))]


def _alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A job of one node with eight GPUs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("up", "pids"):
        (tmp_path / name).mkdir()
    for name in ("srun", "scontrol", "sbatch", "ray", "python", "getent", "hostname", "apptainer"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E {STAND_INS / "program.py"} {name} "$@"\n')
        program.chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "STAND_IN_FOLDER": str(tmp_path),
        "STAND_IN_PYTHON": sys.executable,
        "SLURM_JOB_ID": "4321",
        "SLURM_JOB_NODELIST": "node-a",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "UNIFY_RAY_TIMEOUT": "600",
        "UNIFY_SKIP_DOCTOR": "1",  # only its own tests call it
    }
    cluster = Cluster(tmp_path, environment)
    yield cluster
    for process in cluster.started:
        if process.poll() is None:
            process.kill()
            process.communicate()
    for process in cluster.processes():
        os.kill(process, signal.SIGKILL)
