"""verl's two halves of a generation engine for `rollout.name=hf`: the replica (driver side) and the adapter (worker side)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from verl.utils import hf_tokenizer
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import CONTROL_METHOD_CONCURRENCY, RolloutReplica

from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.hf_server import HFServer

CONCURRENCY = 1000  # calls of a server under way at least, as verl has it


def server_name(replica_rank: int) -> str:
    """Ray name of a replica's server; unique within the job, whose namespace is its own."""
    return f"unify_hf_server_{replica_rank}"


def start_server(replica_rank: int, rollout: Any, model: Any) -> Any:
    """The server of a replica: started by whoever asks first, the same one for all who ask later.

    Args:
        replica_rank: which replica.
        rollout, model: verl's nodes `actor_rollout_ref.rollout` and `.model`.
    """
    path, trust = model.path, bool(model.get("trust_remote_code", False))
    tokenizer = hf_tokenizer(path, trust_remote_code=trust)
    return (
        ray.remote(HFServer)
        .options(
            name=server_name(replica_rank),
            get_if_exists=True,
            max_concurrency=max(CONCURRENCY, rollout.max_num_seqs + CONTROL_METHOD_CONCURRENCY),
            num_cpus=0,
        )
        .remote(
            model_path=path,
            pad_id=tokenizer.pad_token_id,
            eos_ids=end_tokens(path, tokenizer.eos_token_id, trust),
            response_length=rollout.response_length,
            max_context=rollout.max_model_len or rollout.prompt_length + rollout.response_length,
            max_batch=rollout.max_num_seqs,
            gather_seconds=(rollout.custom or {})["gather_seconds"],
            dtype=rollout.dtype,
            trust_remote_code=trust,
            override_config=OmegaConf.to_container(OmegaConf.create(model.get("override_config", {}))),
        )
    )


def start_servers(config: DictConfig) -> list[Any]:
    """Start the servers of all ranks, so that they import what they need while the trainer and its workers do. Ray ends them when
    nobody holds what is returned, until a replica does."""
    part = config.actor_rollout_ref
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    return [start_server(rank, part.rollout, part.model) for rank in range(ranks)]


class HFReplica(RolloutReplica):
    """One `HFServer` per rank."""

    async def launch_servers(self) -> None:
        if self.world_size != 1:
            raise ValueError("rollout.name=hf has no tensor parallelism; set rollout.tensor_model_parallel_size=1")
        server = start_server(self.replica_rank, self.config, self.model_config)
        self.servers = [server]
        self._server_handle, self._server_address = server, server_name(self.replica_rank)


class HFServerAdapter(BaseRollout):
    """Pushes this rank's weights to its server. FSDP ranks gather each tensor together, so every rank must iterate to the end."""

    def __init__(self, config: Any, model_config: Any, device_mesh: Any, **_: Any) -> None:
        super().__init__(config, model_config, device_mesh)
        self.replica_rank = int(os.environ["RANK"])
        self.is_leader_rank = True

    async def resume(self, tags: list[str]) -> None:
        return None

    async def release(self) -> None:
        return None

    async def update_weights(self, weights: Iterable[tuple[str, torch.Tensor]], peft_config: Any = None, **_: Any) -> None:
        if peft_config is not None:
            raise ValueError("rollout.name=hf does not take LoRA adapters; use rollout.name=vllm, or model.lora_rank=0")
        state = {name: tensor.detach().cpu() for name, tensor in weights}
        await ray.get_actor(server_name(self.replica_rank)).load_weights.remote(state)
