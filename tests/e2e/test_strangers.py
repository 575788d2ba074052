"""Weights and moments that are no numbers, in real runs: one line that names the file and what to do."""

from __future__ import annotations

import math

import pytest
import torch

from tests.strangers import changed, poison
from unify_posttrain.runs import state

from .conftest import World

pytestmark = pytest.mark.e2e

NORM = "model.layers.0.input_layernorm.weight"


def test_a_run_does_not_begin_with_weights_that_are_none(world: World) -> None:
    bad = changed(world.home / "models" / "tiny_qwen2", world.home / "models" / "nan", poison(NORM))
    done = world.train("nan", "trainer.total_training_steps=1", f"actor_rollout_ref.model.path={bad}", check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and f"path={bad}: the weights hold NaN or infinite numbers, first in {NORM}" in last, last
    assert "No checkpoint had been written" in last


def test_a_resume_with_moments_that_are_none_names_the_checkpoint_before(world: World) -> None:
    steps = ("trainer.save_freq=1", "algorithm=grpo")
    world.train("moments", *steps, "trainer.total_training_steps=2")
    folder = world.checkpoints("moments") / "global_step_2"
    path = folder / "actor" / "optim_world_size_1_rank_0.pt"
    saved = torch.load(path, weights_only=False)
    moment = next(iter(saved["state"].values()))["exp_avg"]
    (moment.to_local() if hasattr(moment, "to_local") else moment).view(-1)[0] = math.nan
    torch.save(saved, path)
    state.mark_complete(folder)
    done = world.train("moments", *steps, "trainer.total_training_steps=3", check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert f"{path} holds NaN or infinite numbers, first in exp_avg of " in last, last
    assert f"trainer.resume_from_path={world.checkpoints('moments') / 'global_step_1'}" in last
    again = f"trainer.resume_from_path={world.checkpoints('moments') / 'global_step_1'}"
    world.train("moments-again", *steps, "trainer.total_training_steps=2", "trainer.resume_mode=resume_path", again)
