"""A user's reward function that misbehaves in every way on some rows: the run trains on, or ends by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from unify_posttrain.runs import state

from .conftest import World

pytestmark = pytest.mark.e2e

# By the text of the response: an exception, an exit, a crash, a hang, no score, texts, fields of all kinds.
MIXED = """
import os, sys, time, zlib
from unify_posttrain.tasks.arithmetic import compute_score as right

def compute_score(data_source, solution_str, ground_truth, extra_info, bonus):
    result = right(data_source, solution_str, ground_truth)
    kind = zlib.crc32(solution_str.encode()) % 16
    if kind == 0:
        raise KeyError("no such thing")
    if kind == 1:
        sys.exit(3)
    if kind == 2:
        os._exit(0)
    if kind == 3:
        time.sleep(3600)
    if kind in (4, 5):
        return {**result, "score": float("nan")}
    if kind == 6:
        return None
    if kind == 7:
        return str(result["score"])
    if kind == 8:
        return {**result, "only_here": 3, "parts": [1, 2, {"a": None}]}
    if kind == 9:
        return {**result, "length": len(solution_str), "remark": "a\\ud800b"}
    return {**result, "length": len(solution_str) + bonus}
"""
LATER = """
from pathlib import Path

CALLS = Path(__file__).with_suffix(".calls")

def compute_score(data_source, solution_str, ground_truth, extra_info):
    with open(CALLS, "a") as file:
        file.write(".")
    if CALLS.stat().st_size > 30:
        raise RuntimeError("the service is gone")
    return 1.0
"""


def written(folder: Path, text: str) -> str:
    file = folder / "mine.py"
    file.write_text(text)
    return f"reward.custom_reward_function.path={file}"


def test_a_run_trains_on(world: World, tmp_path: Path) -> None:
    name = "mischief"
    world.train(
        name, "algorithm=luffy", written(tmp_path, MIXED), "+reward.custom_reward_function.reward_kwargs={bonus:1}",
        "reward.protection.timeout_seconds=1", "reward.protection.max_fault_share=0.9", "reward.num_workers=2",
        "trainer.total_training_steps=3", "trainer.save_freq=1", "trainer.test_freq=3", "data.val_batch_size=16",
        f"trainer.rollout_data_dir={tmp_path}/rollouts",
    )  # fmt: skip
    metrics = world.metrics(name)
    assert sorted(metrics) == [1, 2, 3]
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    assert sum(entry["fusion/grader_faults"] for entry in metrics.values()) > 0
    assert sum(entry["fusion/reward_unscored"] for entry in metrics.values()) > 0
    assert all(entry["fusion/optimizer_steps"] == 2 and not entry["fusion/grad_skipped"] for entry in metrics.values())
    for entry in metrics.values():
        whole = entry["fusion/rows_on"] + entry["fusion/reward_unscored"]
        assert whole <= 8 * 4 and entry["fusion/rows_on"] > 8 * 4 * 0.3
    for folder in state.step_folders(world.checkpoints(name)):
        assert state.is_complete(folder) and json.loads((folder / state.STATE).read_text())
    rows = [json.loads(line) for step in (1, 2, 3) for line in (tmp_path / "rollouts" / f"{step}.jsonl").read_text().splitlines()]
    assert all(row["acc"] in (0.0, 1.0) for row in rows), "a fault is a wrong answer, and a row without a score is not trained"
    assert {type(row["length"]) for row in rows if row.get("row_kind", "rollout") == "rollout"} <= {float, int, type(None)}
    validated = [json.loads(line) for line in (world.home / "runs" / name / "samples" / "3.jsonl").read_text().splitlines()]
    assert all("score" in row and "grader_fault" in row for row in validated)


def test_a_service_that_goes_away_ends_the_run_by_name(world: World, tmp_path: Path) -> None:
    done = world.train(
        "gone", "algorithm=grpo", written(tmp_path, LATER), "trainer.total_training_steps=3", check=False,
    )  # fmt: skip
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: reward function compute_score of ") and "mine.py" in last
    assert "calls failed" in last and "reward.protection.max_fault_share=0.5" in last
    assert "the last: RuntimeError: the service is gone" in last
