"""PPO with a critic through the real command: what it logs, critic warm-up, and exact continuation with both models."""

from __future__ import annotations

import math

import pytest
import torch

from .conftest import COMPARED, World, resumed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in one test

# The critic learns alone in step 1; the policy joins it in step 2 (trainer.critic_warmup counts from there).
RUN = ("algorithm=ppo", "trainer.critic_warmup=2", "trainer.save_freq=2", "critic.optim.lr=1e-3", COMPARED)


def test_trains_with_a_critic_and_continues_exactly(world: World) -> None:
    world.train("ppo", *RUN, "trainer.total_training_steps=3", "trainer.resume_mode=disable")
    metrics = world.metrics("ppo")
    assert sorted(metrics) == [1, 2, 3]
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    for entry in metrics.values():
        assert entry["fusion/rows_on"] == 32 and entry["fusion/rows_demo"] == 0
        assert entry["critic/vf_loss"] > 0 and entry["critic/grad_norm"] > 0 and entry["critic/lr"] == 1e-3
        assert entry["critic/values/min"] < entry["critic/values/max"], "the value head is drawn, not zero"
    assert metrics[3]["critic/values/mean"] != metrics[2]["critic/values/mean"]
    assert "actor/pg_loss" not in metrics[1] and metrics[1]["fusion/optimizer_steps"] == 0, "warm-up"
    assert all(metrics[step]["actor/grad_norm"] > 0 and metrics[step]["fusion/optimizer_steps"] == 2 for step in (2, 3))
    # Weights are pushed after every step, trained or not: the engine samples from the policy that is trained.
    assert all(entry["training/rollout_probs_diff_max"] < 1e-4 for entry in metrics.values())

    saved = world.checkpoints("ppo") / "global_step_2"
    weights = torch.load(saved / "critic" / "model_world_size_1_rank_0.pt", weights_only=False)
    assert any(name.startswith("score.") for name in weights), "the value head is saved"
    first, again = resumed(world, "ppo", 2, *RUN, "trainer.total_training_steps=3")
    assert again == first and list(first) == [3]
