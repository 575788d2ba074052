"""verl's two halves of a generation engine for `rollout.name=hf`: the replica (driver side) and the adapter (worker side)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import ray
import torch
from verl.workers.rollout.base import BaseRollout
from verl.workers.rollout.replica import RolloutReplica

from unify_posttrain.rollout.hf_start import server_name, start_server


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
