"""The agent loop of environments over verl's vLLM replica: episodes of several turns, trained and validated."""

from __future__ import annotations

import math

import pytest

from ..e2e.points import RUN, add_points, dumped, is_played, segments_are_turns
from .conftest import LIMIT, VLLMWorld

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]


@pytest.fixture(scope="module")
def points(world: VLLMWorld) -> VLLMWorld:
    add_points(world)
    return world


def are_episodes(world: VLLMWorld, name: str, steps: int) -> dict[int, dict[str, float]]:
    metrics = world.metrics(name)
    assert sorted(metrics) == list(range(1, steps + 1))
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    for step, entry in metrics.items():
        is_played(entry)
        # Had a token been lost, changed or encoded anew between two turns, the rest would differ.
        assert entry["training/rollout_probs_diff_max"] < 1e-4 and entry["actor/grad_norm"] > 0
        segments_are_turns(dumped(world, name, step))
    return metrics


def test_hpt_and_grpo_play_episodes_by_vllm(points: VLLMWorld) -> None:
    points.train(
        "episodes", "algorithm=sft_then_rl", "fusion.phases=[{algorithm:hpt,steps:2},{algorithm:grpo}]", *RUN,
        "trainer.total_training_steps=4", "trainer.test_freq=4",
    )  # fmt: skip
    metrics = are_episodes(points, "episodes", 4)
    assert sum(metrics[step]["fusion/rows_demo"] for step in (1, 2)) > 0, "hands that no rollout solved"
    assert all(metrics[step]["fusion/rows_demo"] == 0 for step in (3, 4))
    assert "val-core/gp_ood/acc/mean@1" in metrics[4]


def test_ppo_over_turns_plays_by_vllm(points: VLLMWorld) -> None:
    points.train(
        "turns", "algorithm=ppo_heals", *RUN, "trainer.total_training_steps=2", "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
        "actor_rollout_ref.rollout.n=1", "actor_rollout_ref.rollout.temperature=1.0", "critic.optim.lr=1e-3",
    )  # fmt: skip
    for entry in are_episodes(points, "turns", 2).values():
        assert entry["critic/vf_loss"] > 0 and entry["fusion/rows_on"] == 16
