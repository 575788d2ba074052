"""What a run computes with: versions, source and host. Pure: reads package metadata and files, imports none of the packages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("unify-posttrain", "verl", "torch", "ray", "vllm", "transformers", "datasets", "flash-attn")
CHECKOUT = Path(__file__).resolve().parents[2]
GPUS = Path("/proc/driver/nvidia/gpus")
GIT_SECONDS = 10


def environment() -> dict[str, Any]:
    """Facts for `RUN/environment.json`.

    Returns:
        python, platform; packages: version by name, None if not installed; git: {commit, changed} of a checkout, else None; cores,
        memory_gib of the host; gpus: their models, as far as NVIDIA's driver lists them.
    """
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(CHECKOUT),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": _gpus(GPUS),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit of a checkout, and whether tracked files differ from it; None outside of one or without git."""
    if not (folder / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(folder), *command], capture_output=True, text=True, check=True, timeout=GIT_SECONDS
            ).stdout
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit.strip(), "changed": bool(changes.strip())}


def _gpus(folder: Path) -> list[str]:
    """Models from NVIDIA's driver, one entry per GPU."""
    models = []
    for file in sorted(folder.glob("*/information")):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        models += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return models
