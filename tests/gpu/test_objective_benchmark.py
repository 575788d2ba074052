"""The benchmark of the output head (tests/benchmarks/objective.py) as ratios of one run: memory and errors are held, time shown."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import pytest
import torch

from tests.benchmarks import objective

from .kit import sizes

SHARED = {"read": 0.75, "verl_files": None}
FEW = Namespace(device="cpu", dtype="float32", tokens=256, vocab=8192, hidden=32, chunk=32, repetitions=1, **SHARED)
MANY = Namespace(device="cuda", dtype="bfloat16", tokens=8192, vocab=151_936, hidden=1536, chunk=1024, repetitions=3, **SHARED)


# Entropies need what log-probs need and more; on CPU, where every measurement is a process of its own, they stand for both.
@pytest.mark.parametrize("entropy", [False, True] if torch.cuda.is_available() else [True])
@sizes(FEW, MANY, gib=60, on_cpu="slow")
def test_ours_needs_less_memory_and_is_as_right(size: Namespace, entropy: bool, measured: Callable[[str], None]) -> None:
    results = objective.compare(size, entropy)
    for name, result in results.items():
        if name != "limits":
            ratios = ", ".join(f"{key} {value:.2f}" for key, value in result.items() if " / " in key)
            measured(f"{name}: {ratios}, error of a log-prob {result['log_prob']:.1e}")
    for reason in objective.load(size, entropy)[1].items():
        measured("left out: {} ({})".format(*reason))
    ours = results["ours"]
    assert ours["memory / naive"] < 0.6
    for error in ("log_prob", "d_hidden", "d_weight"):
        # Float32 rounds differently in every order of summing; what is larger than that has to be no worse than the plain form's.
        assert ours[error] <= max(2 * results["naive"][error], 1e-5), error
