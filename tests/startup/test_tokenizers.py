"""The driver renders prompts as verl's workers do, with and without a template of the tokenizer's own."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from verl.utils.chat_template import initialize_system_prompt
from verl.workers.config import HFModelConfig

from unify_posttrain.config import compose_config
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.startup.tokenizers import load_tokenizer
from unify_posttrain.tasks.tiny_model import build_tokenizer

POST = [{"role": "user", "content": "POST: {{ x }} {% y %}\n\n  TL;DR:"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A base model's tokenizer: no template."""
    tokenizer = build_tokenizer(256)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    return tmp_path


def config(folder: Path, *overrides: str):
    return compose_config(["algorithm=grpo", f"actor_rollout_ref.model.path={folder}", *overrides])


def test_no_template_names_the_key(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no chat template; set actor_rollout_ref\.model\.custom_chat_template"):
        load_tokenizer(config(folder))


def test_raw_text_reaches_driver_demonstrations_and_workers_unchanged(folder: Path, algorithm) -> None:
    composed = config(folder, "task=tldr")
    tokenizer = load_tokenizer(composed)
    ids = tokenizer(POST[0]["content"])["input_ids"]
    assert tokenizer.apply_chat_template(POST, add_generation_prompt=True) == ids
    reader = make_reader(tokenizer, algorithm("algorithm=grpo").fusion, {})
    assert reader.render(POST) == (POST[0]["content"], ids)
    model = OmegaConf.to_container(composed.actor_rollout_ref.model, resolve=True)
    worker = HFModelConfig(path=str(folder), custom_chat_template=model["custom_chat_template"]).tokenizer
    assert worker.apply_chat_template(POST, add_generation_prompt=True) == ids
    assert initialize_system_prompt(worker) == []


def test_custom_template_wins_over_the_tokenizers_own(folder: Path) -> None:
    build_tokenizer(256).save_pretrained(folder)
    assert load_tokenizer(config(folder)).apply_chat_template(POST, tokenize=False).startswith("<|user|>")
    assert load_tokenizer(config(folder, "task=tldr")).apply_chat_template(POST, tokenize=False) == POST[0]["content"]
