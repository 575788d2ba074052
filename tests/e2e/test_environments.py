"""Episodes of several turns through the real command: general points with three cards, a model of characters that answers, is told
what is wrong and answers again. Phases string the methods together; PPO over turns runs on two ranks."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from tests.tasks.environments import task_settings
from unify_posttrain.tasks.general_points.rows import Settings, build_rows, write_splits
from unify_posttrain.tasks.pretraining import encode_examples
from unify_posttrain.tasks.tiny_model import _new_model
from unify_posttrain.tasks.tokenizer import build_tokenizer

from .conftest import ROOT, World, resumed

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # two runs in a test

TURNS, PRETRAINING_STEPS = 3, 250
PREPARED = ("prepare.task.cards=3", "prepare.task.prompt_style=compact", "prepare.task.revise=0.5")
ROWS = "prepare.task.rows={train: 48, gp_id: 8, gp_id_seen: 0, gp_ood: 8, gp_ood_target: 0}"
# A prompt is at most <|user|>JQK=10|10 10 10<|end|><|assistant|>, 18 tokens; three answers of 44 and two feedbacks of some 15.
RUN = (
    "task=general_points", f"environment.max_turns={TURNS}", "environment.max_tokens_per_turn=44", "environment.min_turn_tokens=8",
    "data.max_prompt_length=20", "data.max_response_length=160", "trainer.rollout_data_dir=${trainer.run_dir}/rollouts",
    "actor_rollout_ref.model.path=${oc.env:UNIFY_HOME}/models/tiny_points", "actor_rollout_ref.rollout.custom.gather_seconds=0.2",
)  # fmt: skip
# What compares the engine's log-probabilities with the actor's: requests of one turn may reach the engine in two batches on a busy
# machine, and its arithmetic then differs in the last bit. No token and no loss does.
OF_THE_ENGINE = ("training/rollout", "rollout_corr/")


def conversation(row: dict[str, Any]) -> str:
    """A demonstration with what the chat template puts around the user's words."""
    return "".join(f"<|end|><|user|>{m['content']}<|end|><|assistant|>" if m["role"] == "user" else m["content"] for m in row["target"])


def pretrain(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, rows: list[dict[str, Any]]) -> None:
    """On conversations, long enough to answer in the right form and short enough to be wrong often."""
    generator, optimizer = random.Random(0), torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(PRETRAINING_STEPS):
        drawn = generator.sample(rows, 24)
        ids, labels = encode_examples(tokenizer, [(row["prompt"][0]["content"], conversation(row)) for row in drawn])
        logits = model(input_ids=ids, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture(scope="module")
def points(world: World) -> World:
    """The world of the sums, with hands of three cards and a model for them."""
    settings = task_settings("general_points", *PREPARED, ROWS)
    write_splits(world.home / "data" / "general_points", settings)
    shape = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2.yaml").read_text())["prepare"]["model"]
    shape |= {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "intermediate_size": 128, "max_position_embeddings": 256}
    tokenizer = build_tokenizer(256)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _new_model(shape, tokenizer)
        pretrain(model, tokenizer, [row for row in build_rows(Settings.from_node(settings)) if row["extra_info"]["split"] == "train"])
    folder = world.home / "models" / "tiny_points"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return world


def dumped(world: World, name: str, step: int) -> list[dict[str, Any]]:
    text = (world.home / "runs" / name / "rollouts" / f"{step}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def is_played(metrics: dict[str, float]) -> None:
    """The metrics of a step with episodes."""
    assert 1 < metrics["environment/turns"] <= TURNS and metrics["environment/feedback_tokens"] > 3
    assert sum(metrics[f"environment/stop_{reason}"] for reason in ("solved", "length", "turns", "ended")) == pytest.approx(1)
    assert metrics["environment/stop_solved"] == pytest.approx(metrics["environment/acc"])
    shares = [value for name, value in metrics.items() if name.startswith("environment/outcome/")]
    assert len(shares) == 7 and sum(shares) == pytest.approx(1) and metrics["environment/faults"] == 0


def segments_are_turns(rows: list[dict[str, Any]]) -> None:
    """Every rollout is answers and, between two of them, what nobody sampled."""
    episodes = [row for row in rows if row.get("turn_scores")]
    assert any(len(row["turn_scores"]) > 1 for row in episodes)
    for row in episodes:
        kinds = [kind for kind, _ in row["segments"]]
        assert kinds.count("untrained") == len(row["turn_scores"]) - 1 and kinds[-1] in ("on", "demo")
        assert len(row["turn_outcomes"]) == len(row["turn_scores"]) == row["turns"]
        for kind, text in row["segments"]:
            assert (kind == "untrained") == text.startswith("<|user|>no:") == text.endswith("<|end|><|assistant|>")


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
