"""Two tiny models of one architecture: a base, and one whose projections were changed by a matrix of rank two."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

Change = Callable[[str, Tensor], Tensor]


def save_model(folder: Path, change: Change | None = None, dtype: torch.dtype = torch.float32, llama: bool = False) -> Path:
    """A random model of two layers with the character tokenizer; `change(name, weight)` gives new weights of the projections."""
    from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

    from unify_posttrain.tasks.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(max_length=128)
    sizes = {
        "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 128, "tie_word_embeddings": not llama,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**sizes)) if llama else Qwen2ForCausalLM(Qwen2Config(**sizes))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if change is not None and "_proj.weight" in name:
                weight.copy_(change(name, weight))
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def low_rank(name: str, weight: Tensor) -> Tensor:
    """A weight with an update of rank two."""
    generator = torch.Generator().manual_seed(len(name) + weight.shape[0])
    left, right = torch.randn(len(weight), 2, generator=generator), torch.randn(2, weight.shape[1], generator=generator)
    return weight + 0.003 * left @ right


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(base, tuned); the tuned one is in bfloat16."""
    folder = tmp_path_factory.mktemp("pair")
    return save_model(folder / "base"), save_model(folder / "tuned", low_rank, torch.bfloat16)
