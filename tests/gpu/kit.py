"""What the tests share that needs torch and transformers alone: two sizes of everything, random models, peaks of memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from tests.startup.storage import LiveBytes
from unify_posttrain.shapes import Shape
from unify_posttrain.tasks.tokenizer import build_tokenizer


@dataclass(frozen=True)
class ModelSize:
    """Numbers of a Qwen2 whose embedding is its output head."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    positions: int

    def config(self, **more: Any) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocabulary, hidden_size=self.hidden, intermediate_size=self.intermediate, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, num_key_value_heads=self.kv_heads, max_position_embeddings=self.positions,
            tie_word_embeddings=True, **more,
        )  # fmt: skip

    def shape(self, model: nn.Module) -> Shape:
        parameters = sum(each.numel() for each in model.parameters())
        return Shape(parameters, self.layers, self.hidden, self.vocabulary, self.intermediate, tied=True)


TINY = ModelSize(vocabulary=64, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, positions=64)
# Its vocabulary outweighs its layers, as in the real ones.
SMALL = ModelSize(vocabulary=4096, hidden=32, intermediate=48, layers=2, heads=2, kv_heads=1, positions=512)
# All of its vocabulary over little else: for what writes weights to the disk.
NARROW = ModelSize(vocabulary=151_936, hidden=256, intermediate=512, layers=2, heads=4, kv_heads=2, positions=4096)
# Qwen2.5-1.5B with 4 of its 28 layers: what an update needs for its logits is the same, what it needs for its weights is not.
WIDE = ModelSize(vocabulary=151_936, hidden=1536, intermediate=8960, layers=4, heads=12, kv_heads=2, positions=4096)


def sizes(cpu: Any, cuda: Any, *packages: str, gib: float = 0.0, on_cpu: str | None = None) -> pytest.MarkDecorator:
    """Run a test with `size` = cpu among those on CPU and with `size` = cuda on a GPU.

    Args:
        packages, gib: what the second asks for beside a GPU: packages, and free memory on it.
        on_cpu: a marker of the first: `slow`, or `vllm` for what make test-vllm runs.
    """
    on_gpu = (pytest.mark.gpu, pytest.mark.needs(*packages, gib=gib))
    marks = getattr(pytest.mark, on_cpu) if on_cpu else ()
    return pytest.mark.parametrize("size", [pytest.param(cpu, id="cpu", marks=marks), pytest.param(cuda, id="cuda", marks=on_gpu)])


def random_model(size: ModelSize, device: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Qwen2ForCausalLM:
    """The same weights on every device and in every dtype, up to rounding."""
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(size.config(attn_implementation=attention)).float()
    return model.to(device=device, dtype=dtype)


def model_folder(folder: Path, size: ModelSize) -> Path:
    """A random model and a tokenizer, as `actor_rollout_ref.model.path` wants them."""
    random_model(size, "cpu").save_pretrained(folder)
    build_tokenizer(size.positions).save_pretrained(folder)
    return folder


def distance(mine: Tensor, other: Tensor) -> float:
    """Relative distance in the 2-norm, in float64."""
    return float((mine.double() - other.double()).norm() / other.double().norm())


@dataclass
class Peak:
    """Bytes that lived at most, those included that `resident` says were there before."""

    bytes: float = 0.0


@contextmanager
def peak_memory(device: str, before: float, resident: Callable[[], float]) -> Iterator[Peak]:
    """Measure the block.

    Args:
        before: torch.cuda.memory_allocated() before the test made anything; not read on CPU.
        resident: bytes of weights and moments that exist at the beginning. CUDA's allocator knows them; on CPU only the storages
            that are made inside of the block are seen.
    """
    peak = Peak()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated() - before
        return
    held = resident()
    with LiveBytes() as live:
        yield peak
    peak.bytes = held + live.peak


def allocated(device: str) -> float:
    """Bytes of all tensors on the device; 0 on CPU, where nothing counts them."""
    return float(torch.cuda.memory_allocated()) if device == "cuda" else 0.0


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Bytes of weights and of the optimizer's moments."""
    moments = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, Tensor) and each.ndim]
    return float(sum(each.numel() * each.element_size() for each in (*model.parameters(), *moments)))
