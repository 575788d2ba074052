"""Weights that are no numbers, in a real run: one line that names the folder and what to do. (Moments: test_checkpoints.py.)"""

from __future__ import annotations

import pytest

from tests.strangers import changed, poison

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
