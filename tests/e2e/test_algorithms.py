"""Runs that equal each other: the gate at its end and the method that it is then, two ranks and one. Methods: test_methods.py."""

from __future__ import annotations

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
    """One of them has its worker in the driver, the other in a process of its own: that is no difference either."""
    world.train("gate-1", "algorithm=hpt", "trainer.switch_gate=-1", steps(4), *FRESH, "trainer.worker_in_driver=false")
    world.train("dr_grpo", "algorithm=dr_grpo", steps(4), *FRESH)
    hpt, dr_grpo = world.metrics("gate-1"), world.metrics("dr_grpo")
    assert sorted(hpt) == sorted(dr_grpo) == [1, 2, 3, 4]
    for step in hpt:
        keys = [key for key in dr_grpo[step] if not key.startswith(TIMING)]
        assert {key: hpt[step][key] for key in keys} == {key: dr_grpo[step][key] for key in keys}
    assert any(entry["fusion/rl_loss"] != 0 for entry in hpt.values())


def test_two_ranks_with_uneven_rows_and_kl(world: World) -> None:
    """7 prompts x 4 on 2 ranks: the gate leaves row counts that nothing divides; the reference policy runs on CPU. The first step
    is that of one rank."""
    run = (
        "algorithm=hpt",
        "trainer.switch_gate_off=1",
        "data.train_batch_size=7",
        "actor_rollout_ref.actor.ppo_mini_batch_size=7",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=7",
        "actor_rollout_ref.actor.use_kl_loss=true",
        *FRESH,
    )
    world.train("one", *run, steps(1))
    world.train("two-ranks", *run, steps(3), "trainer.n_gpus_per_node=2")
    metrics, (one,) = world.metrics("two-ranks"), world.metrics("one").values()
    assert sorted(metrics) == [1, 2, 3] and all_finite(metrics)
    keys = [set(entry) for entry in metrics.values()]
    assert keys[1] == keys[2] < keys[0], "the same keys at every step, beside those of the pass for old log-probs"
    measured = ("actor/entropy", "perf/mfu/actor_infer", "timing_s/old_log_prob", "training/rollout_", "rollout_corr/")
    assert all(key.startswith(measured) for key in keys[0] - keys[1])
    for entry in (one, *metrics.values()):
        zones = [entry[f"fusion/prompts_{zone}"] for zone in ("rl", "sft", "off", "skipped")]
        histogram = [entry[f"fusion/gate_hist/{s}"] for s in range(5)]
        assert zones == [sum(histogram[2:]), histogram[0], histogram[1], 0], "0 solved: SFT, 1: off-policy, more: RL"
        assert sum(zones) == 7 and entry["fusion/optimizer_steps"] == 1
        demonstrations = zones[1] + zones[2]
        assert entry["fusion/rows_on"] == 4 * (7 - demonstrations) and entry["fusion/rows_demo"] == demonstrations
    for entry in metrics.values():
        assert entry["fusion/rows_padding"] == (entry["fusion/rows_on"] + entry["fusion/rows_demo"]) % 2
    assert any(entry["fusion/rows_padding"] for entry in metrics.values())
    assert metrics[1]["actor/kl_loss"] == pytest.approx(0, abs=1e-6) and metrics[3]["actor/kl_loss"] > 0
    for key in ("fusion/rl_loss", "fusion/sft_loss", "fusion/off_loss", "actor/grad_norm", "fusion/solve_rate"):
        assert metrics[1][key] == pytest.approx(one[key], rel=1e-4, abs=1e-6), key
