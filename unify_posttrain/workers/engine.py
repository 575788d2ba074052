"""verl's FSDP engines as this package uses them: they build, shard, move, run and save a model; what its numbers mean is ours.

An engine is asked for `forward_step` of one micro-batch at a time; cutting, counting, clipping and stepping are those of the other
backend (`actor_update`, `critic_update`).
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor
from verl.utils.device import get_device_name
from verl.utils.ulysses import gather_outputs_and_unpad
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead, FSDPEngineWithValueHead

from unify_posttrain.backend.seams import engine_fixes, value_head
from unify_posttrain.workers.value_model import load_value_model

EngineFixes = engine_fixes()


class PolicyEngine(EngineFixes, FSDPEngineWithLMHead):
    """A language model. With `LogProbHead` on it, it reads that head's answer in place of logits."""

    def prepare_model_outputs(self, output: Any, output_args: dict[str, Any], micro_batch: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(output, SimpleNamespace):
            return super().prepare_model_outputs(output, output_args, micro_batch, *args, **kwargs)
        offsets = micro_batch["input_ids"].offsets()

        def tokens(values: Tensor) -> Tensor:
            if output_args.get("temperature_rmpad") is None:  # padded to the longest row
                lengths = offsets.diff()
                flat = values[torch.arange(values.shape[1], device=values.device) < lengths[:, None]]
            elif self.use_ulysses_sp:
                flat = gather_outputs_and_unpad(values.squeeze(0), gather_dim=0, unpad_dim=0, padding_size=output_args["pad_size"])
            else:
                flat = values.squeeze(0)
            return torch.nested.nested_tensor_from_jagged(flat, offsets)

        return {"log_probs": tokens(output.log_probs), "entropy": tokens(output.entropy)}

    def _build_fsdp_module(self, module: Any) -> Any:
        """verl offloads a model without updates (a reference) to pinned memory, which needs CUDA; without it, it stays in place."""
        config = self.engine_config
        if not config.forward_only or torch.cuda.is_available():
            return super()._build_fsdp_module(module)
        object.__setattr__(config, "forward_only", False)  # verl's configuration is frozen
        try:
            return super()._build_fsdp_module(module)
        finally:
            object.__setattr__(config, "forward_only", True)


class ValueEngine(EngineFixes, FSDPEngineWithValueHead):
    """A language model with one value per token in place of its head.

    Attributes:
        seed: of the head's first weights.
    """

    seed = 0

    def _build_module(self) -> Any:
        with value_head(partial(load_value_model, seed=self.seed), self.model_config):
            return super()._build_module()


def register() -> None:
    """Have verl take these engines; its own registration keeps the first class it was given, and knows no CPU."""
    for model_type, engine in (("language_model", PolicyEngine), ("value_model", ValueEngine)):
        backends = EngineRegistry._engines.setdefault(model_type, {})
        for strategy in ("fsdp", "fsdp2"):
            backends.setdefault(strategy, {})[get_device_name()] = engine


def settle(owner: DictConfig, strategy: str) -> None:
    """Give the `fsdp_config` of an actor or a reference the settings by which the other backend goes, in place.

    verl's engine reads the strategy there, default FSDP1, and not the actor's; `mixed_precision`, default bfloat16, and not
    `dtype`; and how entropies are taken, compiled or not.

    Args:
        owner: the node of the actor or of the reference.
        strategy: the actor's, which is the reference's, too.
    """
    node = owner.fsdp_config
    with open_dict(node):
        node.strategy = strategy
        for name in ("use_torch_compile", "entropy_from_logits_with_chunking", "entropy_checkpointing"):
            node[name] = owner[name]
        if OmegaConf.select(node, "mixed_precision") is None:
            node.mixed_precision = {"param_dtype": node.get("dtype", "bfloat16"), "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
