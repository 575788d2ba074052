"""The pure half of evaluation imports neither torch nor verl nor ray, and composing the command imports none of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

PURE = (
    "store",
    "benchmarks",
    "settings",
    "results",
    "tables",
    "plots",
    "conduct",
    "model_card",
    "exporting",
)

SHARED = ("evaluate", "measures.statistics", "measures.metrics", "measures.intervals", "study.summary")


@pytest.mark.parametrize(
    "modules", [[f"unify_posttrain.evaluation.{name}" for name in PURE] + [f"unify_posttrain.{name}" for name in SHARED]]
)
def test_no_heavy_imports(modules: list[str]) -> None:
    code = (
        f"import sys, {', '.join(modules)}\n"
        "heavy = [name for name in ('torch', 'verl', 'ray', 'vllm', 'transformers') if name in sys.modules]\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
