"""Every algorithm through the real command: what rows it trains, and that its losses mean what they say."""

from __future__ import annotations

import json
import math

import pytest

from .conftest import World

pytestmark = pytest.mark.e2e

FRESH = ("trainer.resume_mode=disable",)
TIMING = ("timing", "perf/")


def steps(number: int) -> str:
    return f"trainer.total_training_steps={number}"


def all_finite(metrics: dict[int, dict[str, float]]) -> bool:
    return all(math.isfinite(value) for entry in metrics.values() for value in entry.values())


def test_gate_minus_one_is_dr_grpo_bit_for_bit(world: World) -> None:
    world.train("gate-1", "algorithm=hpt", "trainer.switch_gate=-1", steps(4), *FRESH)
    world.train("dr_grpo", "algorithm=dr_grpo", steps(4), *FRESH)
    hpt, dr_grpo = world.metrics("gate-1"), world.metrics("dr_grpo")
    assert sorted(hpt) == sorted(dr_grpo) == [1, 2, 3, 4]
    for step in hpt:
        keys = [key for key in dr_grpo[step] if not key.startswith(TIMING)]
        assert {key: hpt[step][key] for key in keys} == {key: dr_grpo[step][key] for key in keys}
    assert any(entry["fusion/rl_loss"] != 0 for entry in hpt.values())


def test_gate_n_is_pure_likelihood(world: World) -> None:
    world.train("gate-n", "algorithm=hpt", "trainer.switch_gate=4", steps(3), *FRESH)
    for entry in world.metrics("gate-n").values():
        assert entry["fusion/rows_on"] == 0 and entry["fusion/rows_demo"] == 8
        assert entry["fusion/prompts_sft"] == 8 and entry["fusion/demo_row_ratio"] == 1
        # One prompt, one demonstration, share 1: total = λ·1·NLL, and there is no sampled token for an entropy bonus.
        assert entry["fusion/total_loss"] == pytest.approx(entry["fusion/sft_nll"], rel=1e-6)
        assert entry["fusion/sft_loss"] == pytest.approx(entry["fusion/sft_nll"], rel=1e-6)
        assert entry["timing_s/update_actor"] > 0 and entry["actor/grad_norm"] > 0


def test_sft_generates_nothing_and_learns(world: World) -> None:
    world.train(
        "sft", "algorithm=sft", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        "actor_rollout_ref.actor.optim.lr=3e-4", "trainer.test_freq=6", steps(6), *FRESH,
    )  # fmt: skip
    metrics = world.metrics("sft")
    assert all(entry["fusion/tokens_generated"] == 0 and entry["timing_s/gen"] == 0 for entry in metrics.values())
    first, second = ([metrics[step]["fusion/sft_nll"] for step in epoch] for epoch in ((1, 2, 3), (4, 5, 6)))
    assert sum(second) < sum(first), "the second pass over the same prompts knows them better"
    assert "val-core/arithmetic_hard/acc/mean@1" in metrics[6], "validation generates, training does not"
    samples = (world.home / "runs" / "sft" / "samples" / "6.jsonl").read_text().splitlines()
    assert len(samples) == 32 and "answer" in json.loads(samples[0])["output"]


def test_luffy_joins_one_demonstration_to_every_group(world: World) -> None:
    world.train("luffy", "algorithm=luffy", "fusion.shaping.gamma=0.3", steps(3), *FRESH)
    metrics = world.metrics("luffy")
    assert all_finite(metrics)
    for entry in metrics.values():
        assert entry["fusion/rows_on"] == 8 * 3 and entry["fusion/rows_demo"] == 8
        assert entry["fusion/demo_score"] == 1.0, "the worked solutions pass the task's own check"
        # The demonstration counts in the group: at least one success each, so no group has Σ Â ≠ 0 by construction.
        assert 0 < entry["fusion/off_ratio_mean"] < 0.84  # γp/(p+γ)² of γ=0.3 peaks at 1/4 · 1/γ = 0.83
    assert any(entry["fusion/off_loss"] != 0 for entry in metrics.values())


def test_two_ranks_with_uneven_rows_and_kl(world: World) -> None:
    """7 prompts x 4 on 2 ranks: the gate leaves row counts that nothing divides; the reference policy runs on CPU."""
    world.train(
        "two-ranks",
        "algorithm=hpt",
        "trainer.n_gpus_per_node=2",
        "data.train_batch_size=7",
        "actor_rollout_ref.actor.ppo_mini_batch_size=7",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7",
        "actor_rollout_ref.actor.use_kl_loss=true",
        steps(3),
        *FRESH,
    )
    metrics = world.metrics("two-ranks")
    assert sorted(metrics) == [1, 2, 3] and all_finite(metrics)
    keys = [set(entry) for entry in metrics.values()]
    assert keys[1] == keys[2] < keys[0], "the same keys at every step, beside those of the pass for old log-probs"
    measured = ("actor/entropy", "perf/mfu/actor_infer", "timing_s/old_log_prob", "training/rollout_", "rollout_corr/")
    assert all(key.startswith(measured) for key in keys[0] - keys[1])
    for entry in metrics.values():
        gated = entry["fusion/prompts_sft"]
        assert entry["fusion/rows_on"] == 4 * (7 - gated) and entry["fusion/rows_demo"] == gated
        assert entry["fusion/rows_padding"] == (4 * (7 - gated) + gated) % 2
        assert entry["fusion/optimizer_steps"] == 1
        assert sum(entry[f"fusion/prompts_{zone}"] for zone in ("rl", "sft", "off", "skipped")) == 7
    assert any(entry["fusion/rows_padding"] for entry in metrics.values())
    assert metrics[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6) and metrics[3]["actor/kl_loss"] > 0


def test_switch_on_two_ranks_starts_as_on_one(world: World) -> None:
    micro = "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8"
    run = ("algorithm=hpt", "trainer.switch_gate_off=1", micro, steps(2), *FRESH)
    world.train("one", *run)
    world.train("two", *run, "trainer.n_gpus_per_node=2")
    one, two = world.metrics("one"), world.metrics("two")
    for key in ("fusion/rl_loss", "fusion/sft_loss", "fusion/off_loss", "actor/grad_norm", "fusion/solve_rate"):
        assert two[1][key] == pytest.approx(one[1][key], rel=1e-4, abs=1e-6), key
    for entries in (one, two):
        for entry in entries.values():
            zones = [entry[f"fusion/prompts_{zone}"] for zone in ("rl", "sft", "off", "skipped")]
            histogram = [entry[f"fusion/gate_hist/{s}"] for s in range(5)]
            assert zones == [sum(histogram[2:]), histogram[0], histogram[1], 0], "0 solved: SFT, 1: off-policy, more: RL"
