"""A machine that lacks things runs what it can: nothing is imported while tests are collected, and every skip says why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import NO_CUDA, missing

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("verl", "ray", "vllm", "hydra", "omegaconf", "flash_attn")
SESSION = """
import sys

import pytest


class Absent:
    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self):
        sys.modules.update(dict.fromkeys({absent!r}))  # None: as if it were not installed


sys.exit(pytest.main({arguments!r}, plugins=[Absent()]))
"""


def test_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert missing({"torch", "no_such_package"}, cuda=False, gib=80) == ["no_such_package"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert missing({"no_such_package"}, cuda=True, gib=80) == [NO_CUDA, "no_such_package"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (24 << 30, 80 << 30))
    assert missing({"torch"}, cuda=True, gib=24) == []
    assert missing(set(), cuda=True, gib=30) == ["30 GiB of free memory on the GPU (24 are)"]


def session(*arguments: str) -> str:
    """Output of pytest in a process where the packages of ABSENT do not exist; it has to end well."""
    command = [sys.executable, "-c", SESSION.format(absent=ABSENT, arguments=["-q", "--confcutdir=tests/gpu", *arguments])]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    return ended.stdout


@pytest.mark.slow
def test_make_test_gpu_where_there_is_nothing() -> None:
    # A make that runs this test hands down its own options, and lines of its own between the commands.
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    make = ["make", "--no-print-directory", "-n", "test-gpu", "PYTHON_GPU=python"]
    command = subprocess.run(make, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert command.stdout.split() == ["python", "-m", "pytest", "-q", "-m", "gpu", "--confcutdir=tests/gpu", "tests/gpu"]
    said = session("-m", "gpu", "tests/gpu")
    assert re.search(r"^\d{2} skipped, \d+ deselected", said, flags=re.MULTILINE), "not one of them failed, or ran"
    listed = said.partition("not run on this machine")[2]
    for reason in (NO_CUDA, f"{NO_CUDA}, verl", f"{NO_CUDA}, flash_attn, verl", f"{NO_CUDA}, vllm"):
        assert re.search(rf"^tests/gpu/\S+\[\S*cuda\S*\]: Skipped: needs {re.escape(reason)}$", listed, flags=re.MULTILINE), reason


@pytest.mark.slow
def test_torch_and_transformers_are_enough_for_some() -> None:
    """Their bodies for the CPU, which are those for the GPU."""
    said = session("-m", "not gpu and not slow", "tests/gpu/test_packed.py", "tests/gpu/test_update_memory.py")
    assert re.search(r"^4 passed, 5 skipped", said, flags=re.MULTILINE), said[-2000:]


def test_the_marker_stands_here_alone() -> None:
    """Elsewhere tests/conftest.py hides the GPUs, and a test that asks for one would be skipped for ever."""
    marked = [
        path.relative_to(ROOT)
        for path in (ROOT / "tests").rglob("*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8") and ROOT / "tests" / "gpu" not in path.parents
    ]
    assert marked == []
