"""A stand-in for a reward model: a random classifier of a few thousand weights that reads characters.

As a script it writes one to a folder, to try a task with a neural reward on a laptop (a second):

    python -m tests.rewards.tiny_classifier some/folder
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GPTNeoXForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForSequenceClassification,
)

from unify_posttrain.tasks.tiny_model import build_tokenizer

CONTEXT = 256


def build_classifier(folder: Path, seed: int = 0, labels: int = 1, head: bool = True) -> Path:
    """Write model and tokenizer; logits are of order 1. `head=False` writes a language model instead."""
    tokenizer = build_tokenizer(CONTEXT)
    config = Qwen2Config(
        **_shape(tokenizer),
        num_key_value_heads=1,
        num_labels=labels,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    return _save(folder, Qwen2ForSequenceClassification if head else Qwen2ForCausalLM, config, tokenizer, seed)


def build_pythia(folder: Path, seed: int = 0, head: bool = True) -> Path:
    """GPT-NeoX as pythia comes: a tokenizer with neither chat template nor padding token."""
    tokenizer = build_tokenizer(CONTEXT)
    tokenizer.chat_template = tokenizer.pad_token = None
    config = GPTNeoXConfig(**_shape(tokenizer), num_labels=1, pad_token_id=None, bos_token_id=tokenizer.eos_token_id)
    return _save(folder, GPTNeoXForSequenceClassification if head else GPTNeoXForCausalLM, config, tokenizer, seed)


def _shape(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": CONTEXT,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.3,  # the usual 0.02 would give every text about the same logit
        "dtype": "float32",
    }


def _save(
    folder: Path, kind: type[PreTrainedModel], config: PretrainedConfig, tokenizer: PreTrainedTokenizerFast, seed: int
) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind(config).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    build_classifier(Path(sys.argv[1]))
