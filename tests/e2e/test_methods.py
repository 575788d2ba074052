"""Every fusion method through the real command, most of them as the phases of one run: starting Ray costs more than training here.

Each of the two runs is then continued from a checkpoint in its middle, and must repeat what it did the first time.
"""

from __future__ import annotations

import json
import math

import pytest

from .conftest import World, resumed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in a test

# Algorithm: (steps, what is changed of its file), in this order. A name brings its own file: clip, weights, rates, optimizer steps.
PHASES = {
    "sft": (1, ""),
    "srft": (2, "fusion:{srft:{entropy_scope:batch}}"),
    "luffy": (1, "fusion:{shaping:{all_maximum:0.9,on:p_logp},prefix:{n_prefix:2,min_ratio:0.2,max_ratio:0.9}}"),
    "prefix_rft": (2, "fusion:{prefix:{steps:10}}"),
    "rl_with_sft_loss": (1, ""),
    "chord": (2, "fusion:{chord:{warm:4,decay:20}},actor:{use_kl_loss:true}"),
    "dft": (1, ""),
    "psft": (1, ""),
    "hpt_released": (1, "fusion:{hpt:{switch_gate:1}}"),
    "uft": (3, "lr:2.0e-4,fusion:{uft:{T_hint:30},lr_schedule:{start:0.5,warmup_ratio:0.7,min_lr:1.0e-5}}"),
    "dapo": (1, ""),
}


def phases() -> str:
    entries = []
    for number, (name, (steps, overrides)) in enumerate(PHASES.items()):
        length = f"steps:{steps}" if number + 1 < len(PHASES) else ""
        entries.append(f"{{{','.join(part for part in (f'algorithm:{name}', length, overrides) if part)}}}")
    return f"fusion.phases=[{','.join(entries)}]"


def by_phase(metrics: dict[int, dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Metrics of each phase's steps."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PHASES}
    for _, entry in sorted(metrics.items()):
        found[list(PHASES)[int(entry["fusion/phase"])]].append(entry)
    return found


def test_eleven_methods_in_one_run_and_a_resume_in_its_middle(world: World) -> None:
    total = sum(steps for steps, _ in PHASES.values())
    run = (
        "algorithm=sft_then_rl",
        phases(),
        f"trainer.total_training_steps={total}",
        "trainer.save_freq=5",
    )
    world.train("methods", *run, "trainer.resume_mode=disable")
    metrics = world.metrics("methods")
    assert sorted(metrics) == list(range(1, total + 1))
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    assert all(entry["actor/grad_norm"] > 0 and entry["fusion/grad_skipped"] == 0 for entry in metrics.values())
    found = by_phase(metrics)
    assert [len(entries) for entries in found.values()] == [steps for steps, _ in PHASES.values()]
    for name in ("sft", "dft", "psft"):
        assert all(entry["fusion/rows_on"] == 0 and entry["fusion/rows_demo"] == 8 for entry in found[name]), name
    assert found["dft"][0]["fusion/sft_loss"] < found["dft"][0]["fusion/sft_nll"], "weighted by probabilities below 1"
    assert found["psft"][0]["fusion/sft_loss"] == pytest.approx(-1, abs=0.1), "the ratio starts at 1"
    assert found["dapo"][0]["fusion/gen_batches"] >= 1, "dynamic sampling belongs to the name"
    for entry in found["srft"]:
        assert entry["fusion/rows_on"] == 24 and entry["fusion/rows_demo"] == 8
        assert 0 < entry["fusion/srft_w_sft"] < 0.5 and entry["fusion/srft_w_on"] > 0.1
    for entry in (*found["luffy"], *found["prefix_rft"]):
        # Rows that begin with a part of a demonstration are rollouts: the policy ends them.
        assert entry["fusion/rows_on"] == 32 and entry["fusion/tokens_demo"] > 0 and 0 < entry["fusion/hint_frac"] < 1
    assert found["rl_with_sft_loss"][0]["fusion/rows_demo"] == 8
    assert found["chord"][0]["fusion/rows_on"] == 32 and found["chord"][0]["fusion/rows_demo"] == 8
    assert found["chord"][0]["fusion/chord_mu"] > found["chord"][1]["fusion/chord_mu"] > 0.02
    gated = found["hpt_released"][0]
    assert gated["fusion/prompts_sft"] == gated["fusion/gate_hist/0"] + gated["fusion/gate_hist/1"]
    for entry in found["uft"]:
        assert entry["fusion/tokens_hint"] > 0 and entry["fusion/hint_loss"] > 0 and entry["fusion/tokens_demo"] == 0
    # 3 steps, warm-up over int(0.7·3) = 2: half of 2e-4, three quarters of it, then the cosine begins at the full rate.
    assert [entry["actor/lr"] for entry in found["uft"]] == pytest.approx([1e-4, 1.5e-4, 2e-4])
    assert all(entry["training/rollout_probs_diff_max"] < 1e-4 for entry in metrics.values())

    first, again = resumed(world, "methods", 5, *run)
    assert again == first


def test_relift_fine_tunes_when_its_buffer_is_full_and_resumes_with_it_half_full(world: World) -> None:
    run = (
        "algorithm=relift", "trainer.total_training_steps=8", "trainer.save_freq=3", "fusion.relift.sft_data_size=3",
        "fusion.relift.lr=1e-3", "actor_rollout_ref.rollout.n=2", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    )  # fmt: skip
    world.train("relift", *run, "trainer.resume_mode=disable")
    metrics = world.metrics("relift")
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    waiting = 0.0
    for _, entry in sorted(metrics.items()):
        unsolved = entry["fusion/gate_hist/0"]
        assert entry["fusion/rows_on"] == 16 and entry["fusion/rows_demo"] == 0, "no demonstration in the RL batch"
        assert entry["fusion/sft_step"] == float(entry["fusion/replay_rows"] > 0)
        assert entry["fusion/replay_rows"] in (0, 3) and entry["fusion/buffer_size"] <= waiting + unsolved
        assert (entry["fusion/replay_nll"] > 0) == bool(entry["fusion/sft_step"])
        waiting = entry["fusion/buffer_size"]
    fired = [step for step, entry in metrics.items() if entry["fusion/sft_step"]]
    assert fired, "some of the two-digit sums are unsolved by two rollouts"
    state = json.loads((world.checkpoints("relift") / "global_step_3" / "unify_state.json").read_text())
    assert len(state["replay"]["entries"]) == metrics[3]["fusion/buffer_size"]

    first, again = resumed(world, "relift", 3, *run)
    assert again == first and len(first) == 5


def test_dynamic_sampling_draws_prompts_until_rewards_differ(world: World) -> None:
    world.train("dapo", "algorithm=dapo", "trainer.total_training_steps=3", "trainer.resume_mode=disable")
    metrics = world.metrics("dapo")
    for entry in metrics.values():
        batches, prompts = entry["fusion/gen_batches"], entry["fusion/prompts_rl"] + entry["fusion/prompts_skipped"]
        assert 1 <= batches <= 10 and prompts == 8 * batches
        # As many groups as a batch has prompts, none of them all right or all wrong, though lengths are punished as well.
        assert entry["fusion/prompts_rl"] == 8 and entry["fusion/rows_on"] == 32
        assert entry["fusion/tokens_generated"] > entry["fusion/tokens_on"] or batches == 1
    assert any(entry["fusion/gen_batches"] > 1 for entry in metrics.values()), "some groups of four agree"
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
