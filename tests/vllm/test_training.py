"""Training with the vLLM replica: weights arrive, seeds repeat, runs resume, prefixes and turns train, evaluation agrees."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from ..e2e.conftest import resumed
from .conftest import AGENT_LOOPS, LIMIT, VLLMWorld

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]

STEPS = 4
HPT = (
    "algorithm=hpt",
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=2",
    "actor_rollout_ref.actor.optim.lr=2e-4",
)
PROBS = "training/rollout_probs_diff_max"
# What floats may differ by if the engine happens to batch the same requests otherwise; counts may not differ at all.
REPEATED = {"rel": 1e-3, "abs": 1e-5}


def all_finite(metrics: dict[int, dict[str, float]]) -> bool:
    return all(math.isfinite(value) for entry in metrics.values() for value in entry.values())


def step_seconds(metrics: dict[int, dict[str, float]]) -> str:
    return ", ".join(f"{entry['timing_s/step']:.1f} (generation {entry['timing_s/gen']:.1f})" for entry in metrics.values())


@pytest.fixture(scope="module")
def trained(world: VLLMWorld) -> VLLMWorld:
    world.train("hpt", *HPT)
    return world


def test_every_update_reaches_the_engine(trained: VLLMWorld, record_property: Any) -> None:
    metrics = trained.metrics("hpt")
    assert sorted(metrics) == list(range(1, STEPS + 1)) and all_finite(metrics)
    worst = max(entry[PROBS] for entry in metrics.values())
    print(f"seconds per step: {step_seconds(metrics)}; {PROBS} {worst:.1e}")
    record_property("seconds per step", step_seconds(metrics))
    assert worst < 1e-4
    assert all(entry["actor/grad_norm"] > 0 for entry in metrics.values())
    # With old weights the engine's probabilities would be off by what the policy has moved: far more.
    assert metrics[STEPS]["fusion/rows_on"] > 0 and moved(trained, 2) > 100 * worst


def moved(world: VLLMWorld, step: int) -> float:
    """Largest change of a next-token probability from the base model to a checkpoint, over the first prompt of the validation."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = world.home / "models" / "tiny_qwen2"
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "47+38="}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    after = AutoModelForCausalLM.from_pretrained(exported(world, step), dtype=torch.float32)
    with torch.inference_mode():
        return float((base(prompt).logits.softmax(-1) - after(prompt).logits.softmax(-1)).abs().max())


def exported(world: VLLMWorld, step: int) -> Path:
    from unify_posttrain.evaluation.exporting import cached_export

    return cached_export(world.home / "runs" / "hpt", step, "float32")


def test_a_run_resumes_with_the_same_rollouts(trained: VLLMWorld) -> None:
    """The seeds of requests, not the engine's state, decide: the repeated steps see the same successes."""
    first, again = resumed(trained, "hpt", 2, *HPT)
    assert sorted(again) == sorted(first) == [3, 4]
    for step in first:
        assert again[step] == pytest.approx(first[step], **REPEATED), step
    gates = [(trained.home / "runs" / name / "gate.jsonl").read_text().splitlines()[-2:] for name in ("hpt", "hpt-again")]
    assert gates[0] == gates[1]


def test_response_prefixes_on_two_ranks_with_a_replica_each(world: VLLMWorld) -> None:
    """LUFFY's parts of demonstrations, then UFT's hints, as the phases of one run."""
    phases = (
        "fusion.phases=[{algorithm:luffy,steps:1,fusion:{prefix:{n_prefix:2,min_ratio:0.2,max_ratio:0.9}}},"
        "{algorithm:uft,fusion:{uft:{T_hint:30}}}]"
    )
    world.train(
        "prefixes", "algorithm=sft_then_rl", phases, "trainer.n_gpus_per_node=2", "trainer.total_training_steps=3",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8", "actor_rollout_ref.actor.optim.lr=1e-3",
    )  # fmt: skip
    metrics = world.metrics("prefixes")
    assert sorted(metrics) == [1, 2, 3] and all_finite(metrics)
    print(f"seconds per step, two ranks: {step_seconds(metrics)}")
    assert all(entry[PROBS] < 1e-4 for entry in metrics.values()), "each rank pushes its weights to its own replica"
    assert metrics[1]["fusion/tokens_demo"] > 0 and 0 < metrics[1]["fusion/hint_frac"] < 1
    assert all(metrics[step]["fusion/tokens_hint"] > 0 for step in (2, 3))
    assert metrics[3]["actor/kl_loss"] > 0.01, "the policy is far from the one that the replicas began with"


def test_two_turns_train(world: VLLMWorld) -> None:
    """An agent loop that is named by the configuration; what the user says in between is masked from loss and comparison."""
    world.train(
        "two-turns",
        "algorithm=grpo",
        "trainer.total_training_steps=2",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        f"actor_rollout_ref.rollout.agent.agent_loop_config_path={AGENT_LOOPS}",
        "actor_rollout_ref.rollout.agent.default_agent_loop=two_turns",
    )
    metrics = world.metrics("two-turns")
    assert sorted(metrics) == [1, 2] and all_finite(metrics)
    assert all(entry[PROBS] < 1e-4 for entry in metrics.values())
    assert all(entry["num_turns/mean"] == 4 for entry in metrics.values())


def test_evaluation_gives_the_tokens_of_the_transformers_engine(trained: VLLMWorld) -> None:
    """engine=vllm is the run's own engine and the default; engine=hf decodes the same checkpoint greedily."""
    run = trained.home / "runs" / "hpt"
    trained.evaluate(f"run={run}", f"steps=[{STEPS}]", "name=with-vllm", "vllm={enforce_eager:true}")
    trained.evaluate(f"run={run}", f"steps=[{STEPS}]", "name=with-hf", "engine=hf")
    samples, results = [], []
    for name in ("with-vllm", "with-hf"):
        folder = trained.home / "evaluations" / name
        (file,) = folder.rglob("samples.jsonl")
        lines = map(json.loads, file.read_text().splitlines())
        samples.append(sorted((line["row"], line["response"], line["tokens"], line["correct"]) for line in lines))
        results.append(json.loads((folder / "results.json").read_text()))
    assert len(samples[0]) == 32 and len({response for _, response, _, _ in samples[0]}) > 8
    assert samples[0] == samples[1]
    assert [entry["settings"]["engine"] for entry in results] == ["vllm", "hf"]
    accuracies = [[source["accuracy"] for source in entry["models"][0]["sources"]] for entry in results]
    assert accuracies[0] == accuracies[1]
