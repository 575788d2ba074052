"""How much memory a rank will need, from the model's own files and the configuration: an estimate for the dry run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from omegaconf import DictConfig

STATE_BYTES = 16  # per trained parameter: fp32 weight, gradient and two Adam moments
WEIGHT_BYTES = 4
LOGIT_COPIES = 2  # the logits and their gradient


@dataclass(frozen=True)
class ModelSize:
    """What the memory of a model follows from: numbers of its config.json and the bytes of its weights."""

    parameters: float
    layers: int
    hidden: int
    vocabulary: int


def model_size(path: str) -> ModelSize | None:
    """Of a folder, or of a hub id whose files are in the local cache; None: not on this disk, or config.json uses other names."""
    folder = Path(path)
    if not folder.is_dir():
        try:
            cached = try_to_load_from_cache(path, "config.json")
        except HFValidationError:  # neither a folder nor a name that the hub could know
            return None
        if not isinstance(cached, str):
            return None
        folder = Path(cached).parent
    description_file, weights = folder / "config.json", _weight_bytes(folder)
    if weights is None or not description_file.is_file():
        return None
    description = json.loads(description_file.read_text(encoding="utf-8"))
    stored = 4 if "32" in str(description.get("dtype") or description.get("torch_dtype")) else 2
    text = {**description, **(description.get("text_config") or {})}  # models that see hold their language model's numbers there
    numbers = [text.get(key) for key in ("num_hidden_layers", "hidden_size", "vocab_size")]
    return ModelSize(weights / stored, *map(int, numbers)) if None not in numbers else None


def _weight_bytes(folder: Path) -> int | None:
    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        return int(json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"])
    return single.stat().st_size if single.is_file() else None


def memory_of_a_rank(config: DictConfig) -> str:
    """One line: what the update needs at least, in its parts, and what the engine may take while it generates.

    Counted are the training state (sharded over all ranks; verl loads what it offloads for the update), the inputs of the layers
    that checkpointing keeps, and the logits of one forward pass. Not counted: what a layer needs while it runs, buffers of
    communication, a reference policy.
    """
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    size = model_size(model.path)
    if size is None:
        return "not estimated: the model's files are not on this disk, or name their numbers otherwise"
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    tokens = _tokens_per_pass(config)
    width = 4 if "32" in str(actor.fsdp_config.dtype) else 2
    lora = model.get("lora_rank", 0) > 0
    parts = {
        "weights (adapters not counted)" if lora else "weights, gradients and moments": size.parameters
        * (WEIGHT_BYTES if lora else STATE_BYTES)
        / ranks,
        f"logits of {tokens} tokens": LOGIT_COPIES * min(tokens, actor.fusion.logits_chunk or tokens) * size.vocabulary * width,
    }
    if model.enable_gradient_checkpointing:
        parts["inputs of layers"] = size.layers * tokens * size.hidden * width
    named = ", ".join(f"{_gigabytes(value)} of {name}" for name, value in parts.items())
    rollout = config.actor_rollout_ref.rollout
    engine = f"; generating, the engine takes {rollout.gpu_memory_utilization:.0%} of the GPU" if rollout.name == "vllm" else ""
    return f"at least {_gigabytes(sum(parts.values()))} per rank in the update: {named}{engine}"


def _tokens_per_pass(config: DictConfig) -> int:
    """Of a forward pass of the update, on one rank."""
    actor = config.actor_rollout_ref.actor
    if actor.use_dynamic_bsz:
        return int(actor.ppo_max_token_len_per_gpu)  # per rank, Ulysses or not
    row = config.data.max_prompt_length + config.data.max_response_length
    return -(-actor.ppo_micro_batch_size_per_gpu * row // actor.ulysses_sequence_parallel_size)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"
