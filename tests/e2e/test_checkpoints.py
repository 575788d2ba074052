"""Checkpoints: exact continuation also after a kill and at an epoch's end, export to a folder of transformers, evaluation."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests import forks
from unify_posttrain.runs import state

from .conftest import World

pytestmark = pytest.mark.e2e

# An epoch is three steps, so the checkpoint of step 3 lies on its boundary.
RUN = (
    "algorithm=hpt",
    "trainer.total_training_steps=6",
    "trainer.save_freq=3",
    "trainer.test_freq=3",
    "actor_rollout_ref.rollout.val_kwargs.n=3",
    "actor_rollout_ref.rollout.val_kwargs.temperature=0.8",
    "actor_rollout_ref.rollout.val_kwargs.do_sample=true",
)
UNTIMED = ("timing", "perf/")


@pytest.fixture(scope="module")
def whole(world: World) -> World:
    world.train("whole", *RUN)
    return world


def _kill_after_step(world: World, name: str, step: int, *overrides: str) -> None:
    """Start a run and SIGKILL the whole of it as soon as a step has been logged."""
    process = world.start(name, *overrides)
    world.wait_for_step(process, name, step)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, world.log(name).read_text()[-3000:]


def test_killed_run_continues_exactly(whole: World) -> None:
    _kill_after_step(whole, "killed", 4, *RUN)
    checkpoints = whole.checkpoints("killed")
    assert [path.name for path in checkpoints.glob("global_step_*")] == ["global_step_3"]
    # What a kill while writing would leave: a newer folder without its marker, and a tracker that already names it.
    torn = checkpoints / "global_step_5"
    shutil.copytree(checkpoints / "global_step_3", torn)
    (torn / "unify_complete.json").unlink()
    (checkpoints / "latest_checkpointed_iteration.txt").write_text("5")
    whole.train("killed", *RUN, alone=True)  # hashes of strings have another seed than in the run that was forked
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


def test_a_resume_with_moments_that_are_none_names_the_checkpoint_before(whole: World) -> None:
    import torch

    shutil.copytree(whole.home / "runs" / "whole", whole.home / "runs" / "moments")
    folder = whole.checkpoints("moments") / "global_step_6"
    path = folder / "actor" / "optim_world_size_1_rank_0.pt"
    saved = torch.load(path, weights_only=False)
    moment = next(iter(saved["state"].values()))["exp_avg"]
    (moment.to_local() if hasattr(moment, "to_local") else moment).view(-1)[0] = math.nan
    torch.save(saved, path)
    state.mark_complete(folder)
    done = whole.train("moments", *RUN, "trainer.total_training_steps=7", check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{path} holds NaN or infinite numbers, first in exp_avg of " in last, last
    assert f"trainer.resume_from_path={whole.checkpoints('moments') / 'global_step_3'}" in last


def test_other_settings_do_not_continue_this_run(whole: World) -> None:
    done = whole.train("whole", *RUN, "fusion.seed=1", check=False)
    assert done.returncode != 0
    assert "fusion.seed" in done.stderr and "trainer.experiment_name" in done.stderr
    assert "Started a local Ray instance" not in done.stderr


def command(world: World, name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"unify_posttrain.{name}", *arguments]


def done(world: World, name: str, *arguments: str) -> str:
    ended = forks.run(
        command(world, name, *arguments), env=world.environment, capture_output=True, text=True, timeout=300, cwd=world.home
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


def test_export_loads_and_generates(whole: World, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    exported = Path(done(whole, "export", str(whole.home / "runs" / "whole"), f"output={tmp_path / 'exported'}").splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    base = AutoModelForCausalLM.from_pretrained(whole.home / "models" / "tiny_qwen2")
    pairs = list(zip(model.parameters(), base.parameters(), strict=True))
    assert all(a.dtype == torch.float32 for a, _ in pairs), "as precise as what generated in training"
    moved = [not torch.allclose(a, b, atol=1e-2) for a, b in pairs]
    assert all(bool((a != b).any()) for a, b in pairs) and not all(moved), "six small steps: every weight moved, none jumped"
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "3+4="}], add_generation_prompt=True, return_tensors="pt")
    text = tokenizer.decode(
        model.generate(prompt, max_new_tokens=30, do_sample=False)[0, prompt.shape[1] :], skip_special_tokens=True
    )
    assert "answer 7" in text
    card = (exported / "README.md").read_text()
    assert "hpt" in card and "2509.04419" in card


def test_evaluation_of_a_checkpoint_is_the_validation_of_its_step(whole: World) -> None:
    """The same prompts, seeds, engine and reward: three samples of each of 32 problems, at temperature 0.8."""
    run = whole.home / "runs" / "whole"
    done(whole, "evaluate", f"run={run}", "steps=[3,6]", "name=sweep")
    samples = whole.home / "evaluations" / "sweep" / "samples"
    for step, metrics in whole.metrics("whole").items():
        keys = [key for key in metrics if key.startswith("val-core/") and key.endswith("/acc/mean@3")]
        assert len(keys) == (3 if step in (3, 6) else 0)
        for key in keys:
            source = key.split("/")[1]
            lines = (samples / f"step_{step}" / "validation" / "samples.jsonl").read_text().splitlines()
            correct = [entry["correct"] for entry in map(json.loads, lines) if entry["source"] == source]
            assert len(correct) in (24, 48)
            assert sum(correct) / len(correct) == pytest.approx(metrics[key], abs=1e-12), key
            assert metrics[f"val-eval/{source}/avg@3"] == pytest.approx(metrics[key], abs=1e-12)
    assert 0 < sum(metrics[key] for key in keys) < 3, "an accuracy of 0 or 1 would be equal by chance"


def test_a_killed_evaluation_ends_with_the_same_results(whole: World) -> None:
    """SIGKILL in the middle of its samples; then the same command again. In chunks of 8 there is time to hit it."""
    folder = whole.home / "exported"
    done(whole, "export", str(whole.home / "runs" / "whole"), "step=6", f"output={folder}")
    settings = [f"model={folder}", "benchmarks=[arithmetic]", "engine=hf", "dtype=float32", "n=4", "temperature=1.0"]
    settings += ["max_prompt_length=12", "max_response_length=40", "chunk_size=8"]
    done(whole, "evaluate", *settings, "name=calm")
    with open(whole.home / "killed-evaluation.log", "w") as log:
        process = forks.Popen(
            command(whole, "evaluate", *settings, "name=struck"), env=whole.environment, stdout=log, stderr=log, cwd=whole.home
        )
    (calm,) = (whole.home / "evaluations" / "calm").rglob("samples.jsonl")
    struck = whole.home / "evaluations" / "struck" / calm.relative_to(whole.home / "evaluations" / "calm")
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if struck.exists() and struck.read_text().count("\n") >= 16:
            process.kill()
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL, (whole.home / "killed-evaluation.log").read_text()[-3000:]
    before = struck.read_bytes()
    assert 16 <= before.count(b"\n") < 128
    done(whole, "evaluate", *settings, "name=struck")
    assert struck.read_bytes().startswith(before[: before.rfind(b"\n") + 1]), "what was there is not generated again"
    results = [(whole.home / "evaluations" / name / "results.json").read_bytes() for name in ("calm", "struck")]
    assert results[0] == results[1].replace(b"struck", b"calm")
