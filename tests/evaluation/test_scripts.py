"""eval_scripts/: valid bash, hand on what they are given, and compose to the published protocols."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from unify_posttrain.evaluate import compose_evaluation
from unify_posttrain.evaluation.settings import Evaluation

SCRIPTS = Path(__file__).resolve().parents[2] / "eval_scripts"
BENCHMARKS = {
    "luffy": ["aime24", "aime25", "amc", "math500", "minerva", "olympiad"],
    "hpt": ["aime24", "aime25", "amc", "math500", "minerva", "olympiad"],
    "relift": ["aime24", "aime25", "amc", "math500", "mmlu_pro", "olympiad"],
    "uft": ["countdown"],
    "heals": ["gp_id_seen", "gp_id", "gp_ood"],
    "ood": ["arc_c", "gpqa_diamond", "mmlu_pro"],
}


def run(name: str, tmp_path: Path, *arguments: str) -> list[str]:
    """Run a script from another folder with an interpreter that prints its arguments."""
    echo = tmp_path / "python"
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    environment = {"PATH": os.environ["PATH"], "PYTHON": str(echo)}
    command = [str(SCRIPTS / f"{name}.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True).stdout.splitlines()


def test_every_script_is_tested() -> None:
    assert sorted(path.stem for path in SCRIPTS.glob("*.sh")) == sorted(BENCHMARKS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_scripts_compose(name: str, tmp_path: Path) -> None:
    dash_m, module, *overrides = run(name, tmp_path, "model=[a,b]", "seed=3", "n=2", "temperature=1.0")
    assert (dash_m, module) == ("-m", "unify_posttrain.evaluate")
    found = Evaluation.from_config(compose_evaluation(overrides))
    assert [benchmark.name for benchmark in found.benchmarks] == BENCHMARKS[name]
    assert [model.path for model in found.models] == ["a", "b"]
    assert found.seed == 3 and {benchmark.n for benchmark in found.benchmarks} == {2}
    assert found.max_response_length == 8192
    assert found.output.name == name


@pytest.mark.parametrize("name", BENCHMARKS)
def test_headers_name_the_paper_or_the_protocol_and_published_numbers(name: str) -> None:
    header = (SCRIPTS / f"{name}.sh").read_text().split("set -euo pipefail")[0]
    assert "Published" in header or "Reported" in header
    assert all(len(line) <= 132 for line in header.splitlines())
