"""FSDP shards to one folder of transformers, through verl's merger (verl.model_merger), which differs from what is wanted in three
points: it casts everything to bfloat16, it writes tied weights twice, and it leaves LoRA adapters beside the base model instead of
merging them. Its own error reports: verl-project/verl#6334 (tied keys), #4553 (LoRA)."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoProcessor, AutoTokenizer, ProcessorMixin
from verl.model_merger.base_model_merger import ModelMergerConfig
from verl.model_merger.fsdp_model_merger import FSDPModelMerger

from unify_posttrain.evaluation.checkpoints import shard
from unify_posttrain.shapes import has_processor, spell_out
from unify_posttrain.untrusted.loading import check_fits
from unify_posttrain.untrusted.weights import check_files, check_finite

LORA_PREFIX, LORA_A, LORA_B = "base_model.model.", ".lora_A.default.weight", ".lora_B.default.weight"


def merge_checkpoint(checkpoint: Path, target: Path, dtype: str, lora_alpha: float | None) -> None:
    """Write the model of a checkpoint with its configuration, generation settings and tokenizer.

    Args:
        checkpoint: `global_step_N` folder; of its shards, only tensors are read.
        target: new folder.
        dtype: of the weights, e.g. float32.
        lora_alpha: of the run, needed if the checkpoint holds adapters.

    Raises:
        ValueError: shards of a layout that cannot be merged, damaged ones, or adapters without their alpha.
    """
    actor = checkpoint / "actor"
    config = ModelMergerConfig(
        operation="merge",
        backend="fsdp",
        local_dir=str(actor),
        target_dir=str(target),
        hf_model_config_path=str(actor / "huggingface"),
        trust_remote_code=False,
    )
    merger = _Merger(config, checkpoint, getattr(torch, dtype), lora_alpha)
    with redirect_stdout(io.StringIO()):  # verl reports by print
        merger.merge_and_save()


class _Merger(FSDPModelMerger):
    """verl's merger for checkpoints of FSDP1 and FSDP2."""

    def __init__(self, config: ModelMergerConfig, checkpoint: Path, dtype: torch.dtype, lora_alpha: float | None) -> None:
        super().__init__(config)
        self.checkpoint, self.dtype, self.lora_alpha = checkpoint, dtype, lora_alpha

    def _load_rank_zero_state_dict(self, world_size: int) -> dict[str, Any]:
        # verl's own reads whatever the file holds, and with it runs what its author put in.
        return _load_shard(shard(self.checkpoint, world_size, 0))

    def _load_and_merge_state_dicts(
        self, world_size: int, total_shards: int, mesh_shape: tuple[int, ...], mesh_dim_names: tuple[str, ...]
    ) -> dict[str, Tensor]:
        if len(mesh_shape) != 1:
            raise ValueError(f"{self.checkpoint}: shards on a mesh {mesh_dim_names} cannot be merged; FSDP and HSDP can")
        paths = [shard(self.checkpoint, world_size, rank) for rank in range(total_shards)]
        shards = [_load_shard(path) for path in paths]
        distributed = any(isinstance(tensor, DTensor) for tensor in shards[0].values())
        merged = {}
        for name in list(shards[0]):
            parts = [part.pop(name) for part in shards]  # popped, so that memory holds one model and not two
            merged[name] = self._join(parts, distributed)
        return merged

    def _join(self, parts: list[Tensor], distributed: bool) -> Tensor:
        first = parts[0]
        if isinstance(first, DTensor):
            # The last placement is the sharded one; before it, HSDP replicates.
            return self._merge_by_placement([part.to_local() for part in parts], first.placements[-1])
        # Beside sharded tensors a plain one is a buffer, the same on all ranks; alone it is a flat shard.
        return first if distributed or len(parts) == 1 else torch.cat(parts, dim=0)

    def save_hf_model_and_tokenizer(self, state_dict: dict[str, Tensor]) -> None:
        with torch.device("meta"):
            model = self.get_transformers_auto_model_class().from_config(
                self.model_config, dtype=self.dtype, trust_remote_code=False
            )
        self.patch_model_generation_config(model)
        state = merge_lora(state_dict, self.lora_alpha)
        for name, first in tied_names(model).items():
            again = state.pop(name, None)
            if again is not None and not torch.equal(again, state[first]):
                raise ValueError(f"{self.checkpoint}: {name} and {first} differ, but config.json says tie_word_embeddings=true")
        target, source = self.config.target_dir, self.hf_model_config_path
        model.save_pretrained(target, state_dict={name: tensor.to(self.dtype).contiguous() for name, tensor in state.items()})
        spell_out(Path(target), model)
        AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(target)
        if has_processor(Path(source)):
            processor = AutoProcessor.from_pretrained(source, trust_remote_code=False)
            if isinstance(processor, ProcessorMixin):
                processor.save_pretrained(target)


def _load_shard(path: Path) -> dict[str, Any]:
    """A rank's weights. The reader takes tensors, also distributed ones, and refuses every other kind of object."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # type: ignore[no-any-return]
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds something else than tensors, which would run what its author put in it; it is no checkpoint of FSDP"
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read ({' '.join(str(error).split())[:200]}); choose another step") from error


def tied_names(model: Any) -> dict[str, str]:
    """Second and further names of a weight -> its first name."""
    first: dict[int, str] = {}
    parameters = model.named_parameters(remove_duplicate=False)
    return {name: first[id(weight)] for name, weight in parameters if first.setdefault(id(weight), name) != name}


def merge_lora(state: Mapping[str, Tensor], alpha: float | None) -> dict[str, Tensor]:
    """W + (alpha / r) B A for every adapted linear layer, under the base model's names; without adapters the state as it is.

    Args:
        state: weights with peft's names: `base_model.model.X.base_layer.weight` (out, in), `….lora_A.default.weight` (r, in),
            `….lora_B.default.weight` (out, r).
        alpha: `actor_rollout_ref.model.lora_alpha` of the run.

    Raises:
        ValueError: adapters without alpha, of another kind, or for a layer that is not there.
    """
    adapters = [name for name in state if "lora_" in name]
    if not adapters:
        return dict(state)
    if alpha is None:
        raise ValueError(
            "the checkpoint holds LoRA adapters, but actor_rollout_ref.model.lora_alpha of the run's config.yaml, needed to merge "
            "them, is not set"
        )
    other = [name for name in adapters if not name.endswith((LORA_A, LORA_B))]
    if other:
        raise ValueError(f"adapter weight {other[0]} is not one of a linear layer, and cannot be merged")
    merged = {_base_name(name): tensor for name, tensor in state.items() if name not in adapters}
    for name in (name for name in adapters if name.endswith(LORA_A)):
        down, up = state[name].float(), state[name.removesuffix(LORA_A) + LORA_B].float()
        layer = f"{_base_name(name.removesuffix(LORA_A))}.weight"
        if layer not in merged:
            raise ValueError(f"adapter weight {name} belongs to {layer}, which the checkpoint does not hold")
        merged[layer] = (merged[layer].float() + (alpha / down.shape[0]) * up @ down).to(merged[layer].dtype)
    return merged


def _base_name(name: str) -> str:
    return name.removeprefix(LORA_PREFIX).replace(".base_layer.", ".")


def check_loads(folder: Path, checkpoint: Path) -> None:
    """Whether an export can be used: transformers loads it (names and shapes, without memory), and every weight is a number.

    Args:
        folder: the export.
        checkpoint: what it was made from, for the message.

    Raises:
        ValueError: a weight is missing (tied ones excepted), unknown, of another shape, or holds NaN or an infinity.
    """
    config = ModelMergerConfig(operation="merge", backend="fsdp", local_dir=str(folder), hf_model_config_path=str(folder))
    shapes = check_files(folder, str(checkpoint), allow_pickle=False)
    check_fits(folder, shapes, FSDPModelMerger(config).get_transformers_auto_model_class(), str(checkpoint))
    check_finite(folder, str(checkpoint))
