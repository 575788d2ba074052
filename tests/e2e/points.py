"""A miniature world of several turns: general points with three cards, a model of characters that answers in the right form and is
wrong often, and what a run with it must show. For the end-to-end tests of both engines."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

from tests.tasks.environments import task_settings
from unify_posttrain.tasks.general_points.rows import Settings, build_rows, write_splits
from unify_posttrain.tasks.pretraining import encode_examples
from unify_posttrain.tasks.tiny_model import _new_model

from .conftest import ROOT, World

TURNS, PRETRAINING_STEPS = 3, 100
PREPARED = ("prepare.task.cards=3", "prepare.task.prompt_style=compact", "prepare.task.revise=0.5")
ROWS = "prepare.task.rows={train: 48, gp_id: 8, gp_id_seen: 0, gp_ood: 8, gp_ood_target: 0}"
# A prompt is at most <|user|>JQK=11,12,13|10 10 10<|end|><|assistant|>, 24 tokens; three answers of 44, two feedbacks of some 15.
RUN = (
    "task=general_points", f"environment.max_turns={TURNS}", "environment.max_tokens_per_turn=44", "environment.min_turn_tokens=8",
    "data.max_prompt_length=24", "data.max_response_length=160", "trainer.rollout_data_dir=${trainer.run_dir}/rollouts",
    "actor_rollout_ref.model.path=${oc.env:UNIFY_HOME}/models/tiny_points",
)  # fmt: skip


def conversation(row: dict[str, Any]) -> str:
    """A demonstration with what the chat template puts around the user's words."""
    return "".join(
        f"<|end|><|user|>{m['content']}<|end|><|assistant|>" if m["role"] == "user" else m["content"] for m in row["target"]
    )


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


def add_points(world: World) -> None:
    """Write data and model into a world."""
    settings = task_settings("general_points", *PREPARED, ROWS)
    write_splits(world.home / "data" / "general_points", settings)
    shape = yaml.safe_load((ROOT / "conf" / "model" / "tiny_qwen2.yaml").read_text())["prepare"]["model"]
    shape |= {"layers": 2, "hidden_size": 64, "heads": 2, "kv_heads": 1, "intermediate_size": 128, "max_position_embeddings": 256}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, tokenizer = _new_model(shape)
        pretrain(
            model, tokenizer, [row for row in build_rows(Settings.from_node(settings)) if row["extra_info"]["split"] == "train"]
        )
    folder = world.home / "models" / "tiny_points"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def dumped(world: World, name: str, step: int) -> list[dict[str, Any]]:
    text = (world.home / "runs" / name / "rollouts" / f"{step}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def is_played(metrics: dict[str, float]) -> None:
    """The metrics of a step with episodes."""
    assert 1 < metrics["environment/turns"] <= TURNS and metrics["environment/feedback_tokens"] > 0
    assert sum(metrics[f"environment/stop_{reason}"] for reason in ("solved", "length", "turns", "ended")) == pytest.approx(1)
    assert metrics["environment/stop_solved"] == pytest.approx(metrics["environment/acc"])
    shares = [value for name, value in metrics.items() if name.startswith("environment/outcome/")]
    assert len(shares) == 7 and sum(shares) == pytest.approx(1) and metrics["environment/faults"] == 0


def segments_are_turns(rows: list[dict[str, Any]]) -> None:
    """Every rollout is answers and, between two of them, what nobody sampled."""
    untrained = ("dropped", "padding")
    episodes = [row for row in rows if row.get("turn_scores") and row.get("row_kind") not in untrained]
    assert any(len(row["turn_scores"]) > 1 for row in episodes)
    for row in episodes:
        kinds = [kind for kind, _ in row["segments"]]
        assert kinds.count("untrained") == len(row["turn_scores"]) - 1 and kinds[-1] in ("on", "demo")
        assert len(row["turn_outcomes"]) == len(row["turn_scores"]) == row["turns"]
        for kind, text in row["segments"]:
            assert (kind == "untrained") == text.startswith("<|user|>no:") == text.endswith("<|end|><|assistant|>")
