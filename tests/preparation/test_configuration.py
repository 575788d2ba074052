"""Composed settings of the public data sets and of the published models, and the command itself."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment
from omegaconf import OmegaConf

from unify_posttrain import prepare
from unify_posttrain.config import compose_config
from unify_posttrain.evaluate import compose_evaluation
from unify_posttrain.tasks import GENERATED, PREPARERS
from unify_posttrain.tasks.environment import ENVIRONMENTS

CHAT = [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]


@cache
def plain(*overrides: str) -> dict:
    """A composed configuration; paths in it begin with the first caller's UNIFY_HOME."""
    return OmegaConf.to_container(compose_config(list(overrides)), resolve=True)


MADE = {*GENERATED, *(task for task in PREPARERS if task.startswith(tuple(ENVIRONMENTS)))}  # without a source


@pytest.mark.parametrize("task", sorted(set(PREPARERS) - MADE))
def test_every_public_set_composes_with_all_shared_settings(task: str) -> None:
    config = plain(f"task={task}", "model=qwen3_4b", "data.max_prompt_length=77")
    node = config["prepare"]["task"]
    folder = {"convert": "converted"}.get(task, task)
    assert node["name"] == task and node["folder"].endswith(f"/home/data/{folder}")
    assert node["max_prompt_length"] == 77 and node["max_response_length"] == config["data"]["max_response_length"]
    assert set(node["prompts"]) == {"system", "template"} and "\\boxed{}" in node["prompts"]["system"]["luffy"]


@pytest.mark.parametrize(
    ("task", "lengths", "function", "version"),
    [("openr1_math", (1024, 8192), "compute_score", 6), ("dapo_math", (1024, 3072), "compute_dapo_score", None)],
)
def test_mathematics_sets_lengths_files_and_reward(task: str, lengths: tuple, function: str, version: int | None) -> None:
    config = plain(f"task={task}", "model=qwen2_5_math_7b")
    data, reward = config["data"], config["reward"]["custom_reward_function"]
    assert (data["max_prompt_length"], data["max_response_length"], data["reward_impl_version"]) == (*lengths, version)
    assert data["train_files"].endswith(f"/home/data/{task}/train.parquet")
    assert data["val_files"].endswith(f"/home/data/{task}/validation.parquet")
    assert (reward["path"], reward["name"]) == ("pkg://unify_posttrain.rewards.math", function)
    own = {"version": 6} if version else {"bold_answer_line": False}  # as verl's reward
    assert reward["reward_kwargs"] == {"workers": 4, "timeout_seconds": 5.0, "memory_mb": 1024} | own
    assert config["prepare"]["task"]["gold_version"] == version


def test_tldr_keeps_its_reward_and_shows_prompts_as_they_are() -> None:
    config = plain("task=tldr", "model=pythia_1b", "algorithm=online_sft")
    assert config["reward"]["custom_reward_function"]["path"] == "pkg://unify_posttrain.workers.reward_classifier"
    assert config["prepare"]["task"]["chat_template"] == config["actor_rollout_ref"]["model"]["custom_chat_template"]
    assert config["data"]["val_files"].endswith("/data/tldr/validation.parquet")


# --- models ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["qwen2_5_math_1_5b", "qwen2_5_math_7b"])
def test_qwen_math_has_the_context_of_the_published_runs(model: str) -> None:
    from transformers import Qwen2Config

    config = plain("task=openr1_math", f"model={model}", "hardware=cpu", "algorithm=ppo")
    actor = config["actor_rollout_ref"]
    rope = {"rope_theta": 40000.0, "max_position_embeddings": 16384}
    assert actor["model"]["override_config"] == {**rope, "attn_implementation": "sdpa"}
    assert config["critic"]["model"]["override_config"] == {**rope, "attn_implementation": "sdpa"}
    assert actor["rollout"]["engine_kwargs"]["vllm"]["hf_overrides"] == rope
    # As verl's update_model_config: one attribute per key, each of which the class must have.
    original = Qwen2Config(rope_theta=10000.0, max_position_embeddings=4096)
    assert all(hasattr(original, key) for key in rope)
    assert config["data"]["max_prompt_length"] + config["data"]["max_response_length"] <= rope["max_position_embeddings"]


def rendered(template: str, word_tokenizer: str, chat: list[dict], **options: bool) -> str:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(word_tokenizer)
    return tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, **options)


@pytest.mark.parametrize("model", ["qwen2_5_math_1_5b", "qwen2_5_math_7b"])
def test_the_think_template_opens_the_answer(model: str, word_tokenizer: str) -> None:
    template = plain(f"model={model}")["actor_rollout_ref"]["model"]["custom_chat_template"]
    prompt = "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nQ<|im_end|>\n"
    assert rendered(template, word_tokenizer, CHAT) == prompt
    assert rendered(template, word_tokenizer, CHAT, add_generation_prompt=True) == f"{prompt}<|im_start|>assistant\n<think>\n"
    spaced = [{"role": "user", "content": "\n  a {{ b }} \n"}]
    assert rendered(template, word_tokenizer, spaced) == "<|im_start|>user\n\n  a {{ b }} \n<|im_end|>\n"  # contents unchanged
    turns = [CHAT[1], {"role": "assistant", "content": "A"}]
    assert rendered(template, word_tokenizer, turns) == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


def test_llama_reads_plain_text(word_tokenizer: str) -> None:
    """No first token, no line break after the cue, and the sentence that asks for a box behind the question."""
    template = plain("model=llama3_1_8b")["actor_rollout_ref"]["model"]["custom_chat_template"]
    assert rendered(template, word_tokenizer, CHAT[1:], add_generation_prompt=True) == (
        "Question:\nQ\nAnswer:\nLet us think step by step."
    )
    assert rendered(template, word_tokenizer, CHAT) == "S\n\nQuestion:\nQ\n"
    compiled = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(template)
    assert compiled.render(messages=CHAT[1:], bos_token="<bos>", eos_token="<eos>") == "Question:\nQ\n"
    turns = [CHAT[1], {"role": "assistant", "content": "A"}]
    assert compiled.render(messages=turns, bos_token="", eos_token="<eos>") == "Question:\nQ\nAnswer:\nA<eos>\n"
    assert plain("task=openr1_math")["prepare"]["task"]["prompts"]["template"]["boxed"].startswith("{question}\n")


def test_evaluation_has_the_prompts_of_training_under_names() -> None:
    templates = compose_evaluation(["model=m", "benchmarks=[aime24]"]).define.templates
    for name, model in (("think", "qwen2_5_math_7b"), ("question_answer", "llama3_1_8b")):
        assert templates[name] == plain(f"model={model}")["actor_rollout_ref"]["model"]["custom_chat_template"]


def test_the_run_s_template_is_the_one_that_lengths_are_counted_with() -> None:
    config = plain("task=openr1_math", "model=qwen2_5_math_7b")
    assert config["prepare"]["task"]["chat_template"].endswith("<think>\\n' -}} {%- endif -%}")


# --- the command -------------------------------------------------------------------------------------------------------


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *overrides: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare", *overrides])
    monkeypatch.setattr(logging.root, "handlers", [])  # Hydra's own would outlive the captured output
    monkeypatch.setattr(logging.root, "level", logging.root.level)
    prepare.main()


def test_the_command_writes_reports_and_builds_no_tiny_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, write: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write([{"q": "a", "a": "1"}, {"q": "a", "a": "1"}, {"q": "b", "a": "2"}])
    columns = ["prepare.task.columns.prompt=q", "prepare.task.columns.ground_truth=a"]
    run(monkeypatch, tmp_path, "task=convert", f"prepare.task.source={source}", *columns)
    printed = capsys.readouterr().out
    assert "dropped: duplicate" in printed and "kept" in printed
    home = tmp_path / "home"
    assert (home / "data" / "converted" / "train.parquet").is_file() and not (home / "models").exists()


def test_the_command_says_in_one_line_what_is_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        run(monkeypatch, tmp_path, "task=openr1_math", "prepare.task.source=missing.jsonl")
    assert str(raised.value).startswith("error: prepare.task.source=missing.jsonl does not exist")


def test_generated_tasks_still_have_a_base_model() -> None:
    assert prepare.wants_base_model(compose_config(["task=arithmetic"]))
    assert not prepare.wants_base_model(compose_config(["task=tldr"]))
    assert not prepare.wants_base_model(compose_config(["task=general_points_small"])), "a model of sums"
    assert prepare.wants_base_model(compose_config(["task=general_points_small", "model=tiny_llama_points"]))
