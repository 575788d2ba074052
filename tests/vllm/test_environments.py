"""The agent loop of environments over verl's vLLM replica: episodes of several turns, trained and validated."""

from __future__ import annotations

import math

import pytest

from ..e2e.points import RUN, add_points, dumped, is_played, segments_are_turns
from .conftest import LIMIT, VLLMWorld

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]


def test_episodes_are_played_by_vllm(world: VLLMWorld) -> None:
    add_points(world)
    world.train("episodes", "algorithm=grpo", *RUN, "trainer.total_training_steps=2", "trainer.test_freq=2")
    metrics = world.metrics("episodes")
    assert sorted(metrics) == [1, 2]
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    for step, entry in metrics.items():
        is_played(entry)
        # Had a token been lost, changed or encoded anew between two turns, the rest would differ.
        assert entry["training/rollout_probs_diff_max"] < 1e-4 and entry["actor/grad_norm"] > 0
        segments_are_turns(dumped(world, "episodes", step))
    assert "val-core/gp_ood/acc/mean@1" in metrics[2]
