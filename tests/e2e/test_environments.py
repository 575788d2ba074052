"""Episodes of several turns through the real command. Phases string the methods together; PPO over turns runs on two ranks."""

from __future__ import annotations

import math

import pytest

from .conftest import COMPARED, World, resumed
from .points import RUN as POINTS
from .points import add_points, dumped, is_played, segments_are_turns

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in a test

RUN = (*POINTS, "actor_rollout_ref.rollout.custom.gather_seconds=0.2", COMPARED)
# What compares the engine's log-probabilities with the actor's: requests of one turn may reach the engine in two batches on a busy
# machine, and its arithmetic then differs in the last bit. No token and no loss does.
OF_THE_ENGINE = ("training/rollout", "rollout_corr/")


@pytest.fixture(scope="module")
def points(world: World) -> World:
    add_points(world)
    return world


def test_methods_play_episodes_and_continue_exactly(points: World) -> None:
    run = (
        "algorithm=sft_then_rl", *RUN, "trainer.total_training_steps=6", "trainer.save_freq=3", "trainer.test_freq=3",
        "fusion.phases=[{algorithm:sft,steps:1},{algorithm:hpt,steps:3},{algorithm:grpo}]",
    )  # fmt: skip
    points.train("episodes", *run, "trainer.resume_mode=disable")
    metrics = points.metrics("episodes")
    assert sorted(metrics) == list(range(1, 7))
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    assert all(entry["actor/grad_norm"] > 0 for entry in metrics.values())
    assert metrics[1]["fusion/rows_demo"] == 8 and "environment/turns" not in metrics[1]
    rows = [row for step in range(1, 5) for row in dumped(points, "episodes", step) if row.get("row_kind") == "demonstration"]
    spoken = [[kind for kind, _ in row["segments"]] for row in rows]
    assert ["demo"] in spoken and ["demo", "untrained", "demo"] in spoken, "demonstrations of one and of two turns"
    for step in range(2, 7):
        is_played(metrics[step])
        assert metrics[step]["training/rollout_probs_diff_max"] < 1e-4, "the actor reads the tokens that the engine sampled"
        segments_are_turns(dumped(points, "episodes", step))
    assert sum(metrics[step]["fusion/rows_demo"] for step in (2, 3, 4)) > 0, "hands that no rollout solved"
    validated = {name for name in metrics[6] if name.startswith("val-")}
    assert {"val-core/gp_id/acc/mean@1", "val-core/gp_ood/acc/mean@1"} <= validated
    assert any(name.startswith("val-aux/gp_ood/turns/") for name in validated)

    first, again = resumed(points, "episodes", 3, *run)
    for entry in (*first.values(), *again.values()):
        for name in [name for name in entry if name.startswith(OF_THE_ENGINE)]:
            del entry[name]
    assert again == first and list(first) == [4, 5, 6]


def test_ppo_over_turns_on_two_ranks(points: World) -> None:
    points.train(
        "turns", "algorithm=ppo_heals", *RUN, "trainer.total_training_steps=2", "trainer.n_gpus_per_node=2",
        "data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4", "actor_rollout_ref.rollout.n=1",
        "actor_rollout_ref.rollout.temperature=1.0", "critic.optim.lr=1e-3", "trainer.resume_mode=disable",
    )  # fmt: skip
    metrics = points.metrics("turns")
    assert sorted(metrics) == [1, 2]
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    for step, entry in metrics.items():
        is_played(entry)
        assert entry["critic/vf_loss"] > 0 and entry["actor/grad_norm"] > 0 and entry["fusion/rows_on"] == 16
        rows = dumped(points, "turns", step)
        segments_are_turns(rows)
        assert any(len(set(row["advantage"])) > 2 for row in rows if isinstance(row["advantage"], list)), "one number per turn"
        assert all(row["score"] == pytest.approx(sum(row["turn_scores"])) for row in rows)
