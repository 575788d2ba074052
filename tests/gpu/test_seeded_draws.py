"""The price of `trainer.seed_rollouts`: seeded draws of vLLM repeat, and take longer. On CPU with the wheel of make test-vllm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from .kit import WIDE, ModelSize, model_folder, sizes

ROOT = Path(__file__).resolve().parents[2]
# Heads of 32, the fewest that vLLM has on CPU.
LITTLE = ModelSize(vocabulary=103, hidden=64, intermediate=96, layers=2, heads=2, kv_heads=1, positions=256)
ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


@dataclass(frozen=True)
class Requests:
    device: str
    model: ModelSize
    number: int
    tokens: int


@pytest.mark.needs("vllm")
@pytest.mark.timeout(1800)
@sizes(Requests("cpu", LITTLE, number=8, tokens=24), Requests("cuda", WIDE, number=128, tokens=256), gib=20, on_cpu="vllm")
def test_the_price_of_seeded_draws(size: Requests, tmp_path: Path, measured: Callable[[str], None]) -> None:
    folder = model_folder(tmp_path, size.model)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.gpu.seeded_draws", str(folder), str(size.number), str(size.tokens)],
        env={**os.environ, **SETTINGS, **(ON_CPU if size.device == "cpu" else {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    report = json.loads(ended.stdout.splitlines()[-1])
    seeded, free = report["seconds"]["seeded"], report["seconds"]["free"]
    measured(f"{size.number} x {size.tokens} tokens: seeded draws take {seeded / free:.2f} times as long ({free:.2f} s without)")
    assert report["tokens"] == size.number * size.tokens
    # In bfloat16 on a GPU a token may fall otherwise where requests were batched otherwise, and then the rest of its response.
    repeated = report["repeated"]
    measured(f"responses that repeat: {repeated['seeded']:.0%} with seeds, {repeated['free']:.0%} without")
    assert repeated["seeded"] >= (1.0 if size.device == "cpu" else 0.5) and repeated["free"] < 0.5
