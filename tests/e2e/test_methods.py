"""Every fusion method through the real command, most of them as the phases of one run: starting Ray costs more than training here.

Each of the two runs is then continued from a checkpoint in its middle, and must repeat what it did the first time.
"""

from __future__ import annotations

import json
import math

import pytest

from .conftest import COMPARED, World, resumed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in a test

# Name of the phase: (algorithm, steps, what is changed of its file), in this order. An algorithm brings its own file: clip,
# weights, rates, optimizer steps. The last phase begins with an epoch, of which each has three steps.
PHASES = {
    "dft": ("dft", 1, ""),
    "srft": ("srft", 2, "fusion:{srft:{entropy_scope:batch}}"),
    "prefixes": ("luffy", 1, "fusion:{shaping:{all_maximum:0.9,on:p_logp},prefix:{n_prefix:2,min_ratio:0.2,max_ratio:0.9}}"),
    "prefix_rft": ("prefix_rft", 2, "fusion:{prefix:{steps:10}}"),
    "rl_with_sft_loss": ("rl_with_sft_loss", 1, ""),
    "chord": ("chord", 2, "fusion:{chord:{warm:4,decay:20}},actor:{use_kl_loss:true}"),
    "uft": ("uft", 3, "lr:2.0e-4,fusion:{uft:{T_hint:30},lr_schedule:{start:0.5,warmup_ratio:0.7,min_lr:1.0e-5}}"),
    "psft": ("psft", 1, ""),
    "hpt_released": ("hpt_released", 1, "fusion:{hpt:{switch_gate:1}}"),
    "gate-n": ("hpt", 2, "fusion:{hpt:{switch_gate:4}}"),
    "luffy": ("luffy", 2, "fusion:{shaping:{gamma:0.3}}"),
    "dapo": ("dapo", 3, ""),
    "sft": ("sft", 6, "lr:3.0e-4"),
}
TOTAL = sum(steps for _, steps, _ in PHASES.values())


def phases() -> str:
    entries = []
    for number, (algorithm, steps, overrides) in enumerate(PHASES.values()):
        length = f"steps:{steps}" if number + 1 < len(PHASES) else ""
        entries.append(f"{{{','.join(part for part in (f'algorithm:{algorithm}', length, overrides) if part)}}}")
    return f"fusion.phases=[{','.join(entries)}]"


def by_phase(metrics: dict[int, dict[str, float]]) -> dict[str, list[dict[str, float]]]:
    """Metrics of each phase's steps."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in PHASES}
    for _, entry in sorted(metrics.items()):
        found[list(PHASES)[int(entry["fusion/phase"])]].append(entry)
    return found


def test_the_methods_in_one_run_and_a_resume_in_its_middle(world: World) -> None:
    run = (
        "algorithm=sft_then_rl",
        phases(),
        f"trainer.total_training_steps={TOTAL}",
        "trainer.save_freq=10",
        f"trainer.test_freq={TOTAL}",
        COMPARED,
    )
    world.train("methods", *run, "trainer.resume_mode=disable")
    metrics = world.metrics("methods")
    assert sorted(metrics) == list(range(1, TOTAL + 1))
    assert all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    assert all(entry["actor/grad_norm"] > 0 and entry["fusion/grad_skipped"] == 0 for entry in metrics.values())
    found = by_phase(metrics)
    assert [len(entries) for entries in found.values()] == [steps for _, steps, _ in PHASES.values()]
    for name in ("sft", "dft", "psft", "gate-n"):
        assert all(entry["fusion/rows_on"] == 0 and entry["fusion/rows_demo"] == 8 for entry in found[name]), name
    assert found["dft"][0]["fusion/sft_loss"] < found["dft"][0]["fusion/sft_nll"], "weighted by probabilities below 1"
    assert found["psft"][0]["fusion/sft_loss"] == pytest.approx(-1, abs=0.1), "the ratio starts at 1"
    for entry in found["srft"]:
        assert entry["fusion/rows_on"] == 24 and entry["fusion/rows_demo"] == 8
        assert 0 < entry["fusion/srft_w_sft"] < 0.5 and entry["fusion/srft_w_on"] > 0.1
    for entry in (*found["prefixes"], *found["prefix_rft"]):
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

    _assert_gate_luffy_dapo_and_sft(found)
    assert [key for entry in metrics.values() for key in entry if key == "val-core/arithmetic_hard/acc/mean@1"] == [
        "val-core/arithmetic_hard/acc/mean@1"
    ], "validation generates, training does not"
    samples = (world.home / "runs" / "methods" / "samples" / f"{TOTAL}.jsonl").read_text().splitlines()
    assert len(samples) == 32 and "answer" in json.loads(samples[0])["output"]

    first, again = resumed(world, "methods", 10, *run)
    assert again == first


def _assert_gate_luffy_dapo_and_sft(found: dict[str, list[dict[str, float]]]) -> None:
    for entry in found["gate-n"]:
        assert entry["fusion/prompts_sft"] == 8 and entry["fusion/demo_row_ratio"] == 1
        # One prompt, one demonstration, share 1: total = λ·1·NLL, and there is no sampled token for an entropy bonus.
        assert entry["fusion/total_loss"] == pytest.approx(entry["fusion/sft_nll"], rel=1e-6)
        assert entry["fusion/sft_loss"] == pytest.approx(entry["fusion/sft_nll"], rel=1e-6)
        assert entry["timing_s/update_actor"] > 0
    for entry in found["luffy"]:
        assert entry["fusion/rows_on"] == 8 * 3 and entry["fusion/rows_demo"] == 8, "a demonstration joins every group"
        assert entry["fusion/demo_score"] == 1.0, "the worked solutions pass the task's own check"
        # The demonstration counts in the group: at least one success each, so no group has Σ Â ≠ 0 by construction.
        assert 0 < entry["fusion/off_ratio_mean"] < 0.84  # γp/(p+γ)² of γ=0.3 peaks at 1/4 · 1/γ = 0.83
    assert any(entry["fusion/off_loss"] != 0 for entry in found["luffy"])
    for entry in found["dapo"]:
        batches, prompts = entry["fusion/gen_batches"], entry["fusion/prompts_rl"] + entry["fusion/prompts_skipped"]
        assert 1 <= batches <= 10 and prompts == 8 * batches, "dynamic sampling belongs to the name"
        # As many groups as a batch has prompts, none of them all right or all wrong, though lengths are punished as well.
        assert entry["fusion/prompts_rl"] == 8 and entry["fusion/rows_on"] == 32
        assert entry["fusion/tokens_generated"] > entry["fusion/tokens_on"] or batches == 1
    assert any(entry["fusion/gen_batches"] > 1 for entry in found["dapo"]), "some groups of four agree"
    assert all(entry["fusion/tokens_generated"] == 0 and entry["timing_s/gen"] == 0 for entry in found["sft"])
    first, second = (sum(entry["fusion/sft_nll"] for entry in epoch) for epoch in (found["sft"][:3], found["sft"][3:]))
    assert second < first, "the second pass over the same prompts knows them better"


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
