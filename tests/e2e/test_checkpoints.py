"""Checkpoints: exact continuation also after a kill and at an epoch's end, and export to a folder that transformers loads."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .conftest import World

pytestmark = pytest.mark.e2e

# An epoch is three steps, so the checkpoint of step 3 lies on its boundary.
RUN = ("algorithm=hpt", "trainer.total_training_steps=6", "trainer.save_freq=3")
UNTIMED = ("timing", "perf/")


@pytest.fixture(scope="module")
def whole(world: World) -> World:
    world.train("whole", *RUN)
    return world


def _kill_after_step(world: World, name: str, step: int, *overrides: str) -> None:
    """Start a run and SIGKILL the whole of it as soon as a step has been logged."""
    with open(world.home / f"{name}.log", "w") as log:
        process = subprocess.Popen(
            world.command(name, *overrides),
            env=world.environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=world.home,
        )
    metrics = world.home / "runs" / name / "metrics.jsonl"
    deadline = time.monotonic() + 400
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= step:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.05)
    process.wait()
    assert process.returncode == -signal.SIGKILL, (world.home / f"{name}.log").read_text()[-3000:]


def test_killed_run_continues_exactly(whole: World) -> None:
    _kill_after_step(whole, "killed", 4, *RUN)
    checkpoints = whole.checkpoints("killed")
    assert [path.name for path in checkpoints.glob("global_step_*")] == ["global_step_3"]
    # What a kill while writing would leave: a newer folder without its marker, and a tracker that already names it.
    torn = checkpoints / "global_step_5"
    shutil.copytree(checkpoints / "global_step_3", torn)
    (torn / "unify_complete.json").unlink()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    whole.train("killed", *RUN)
    uninterrupted, resumed = whole.metrics("whole"), whole.metrics("killed")
    assert sorted(resumed) == sorted(uninterrupted) == [1, 2, 3, 4, 5, 6]
    for step, reference in uninterrupted.items():
        keys = [key for key in reference if not key.startswith(UNTIMED)]
        different = {key: (resumed[step][key], reference[key]) for key in keys if resumed[step][key] != reference[key]}
        assert not different, f"step {step}: {different}"
    gate = (whole.home / "runs" / "killed" / "gate.jsonl").read_text()
    assert gate == (whole.home / "runs" / "whole" / "gate.jsonl").read_text()


def test_finished_run_trains_no_further(whole: World) -> None:
    before = whole.metrics("whole")
    done = whole.train("whole", *RUN)
    assert "nothing to train" in done.stdout + done.stderr
    assert whole.metrics("whole") == before


def test_other_settings_do_not_continue_this_run(whole: World) -> None:
    done = whole.train("whole", *RUN, "fusion.seed=1", check=False)
    assert done.returncode != 0
    assert "fusion.seed" in done.stderr and "trainer.experiment_name" in done.stderr
    assert "Started a local Ray instance" not in done.stderr


def test_export_loads_and_generates(whole: World, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    actor, exported = whole.checkpoints("whole") / "global_step_6" / "actor", tmp_path / "exported"
    command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
    command += ["--local_dir", str(actor), "--target_dir", str(exported)]
    merged = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert merged.returncode == 0, merged.stderr[-3000:]
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    base = AutoModelForCausalLM.from_pretrained(whole.home / "models" / "tiny_qwen2", dtype=torch.float32)
    moved = [not torch.allclose(a, b, atol=1e-2) for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    changed = [bool((a != b).any()) for a, b in zip(model.parameters(), base.parameters(), strict=True)]
    assert all(changed) and not all(moved), "six small steps: every weight moved, none jumped"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "3+4="}], add_generation_prompt=True, return_tensors="pt")
    text = tokenizer.decode(
        model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :], skip_special_tokens=True
    )
    assert "answer 7" in text
