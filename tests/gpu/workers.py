"""verl's worker in this process, without Ray: what needs verl, hence imported by the tests inside of their bodies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from verl import DataProto
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu

from tests.benchmarks.objective_update import batch_of_full_rows
from tests.workers.actor_kit import start_group
from unify_posttrain.config import compose_config
from unify_posttrain.workers.fusion_worker import FusionWorker

RANK = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
# Without flash-attn rows are padded; full rows have no padding, so that the tokens are the same.
WITHOUT_FLASH = (
    "actor_rollout_ref.model.use_remove_padding=false",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
)


def configuration(folder: Path, device: str, rows: int, prompt: int, response: int, *overrides: str) -> DictConfig:
    """HPT on one rank of `hardware=gpu_1` or `hardware=cpu`; a micro-batch has `rows` rows."""
    hardware = {
        "cuda": ("hardware=gpu_1", f"actor_rollout_ref.actor.ppo_max_token_len_per_gpu={rows * (prompt + response)}"),
        "cpu": ("hardware=cpu", f"actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu={rows}"),
    }
    return compose_config(
        [
            "algorithm=hpt", *hardware[device], f"actor_rollout_ref.model.path={folder}", f"data.max_prompt_length={prompt}",
            f"data.max_response_length={response}", f"data.train_batch_size={rows}",
            f"actor_rollout_ref.actor.ppo_mini_batch_size={rows}",
            "actor_rollout_ref.rollout.n=2", *overrides,
        ]
    )  # fmt: skip


def start_worker(config: DictConfig) -> FusionWorker:
    """The actor's worker, its model built and sharded over this process alone."""
    start_group()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in RANK.items():
            patch.setenv(name, value)
        worker = FusionWorker(OmegaConf.create(OmegaConf.to_container(config.actor_rollout_ref, resolve=True)), "actor")
    worker.init_model()
    return worker


def full_rows(rows: int, prompt: int, response: int, vocabulary: int) -> DataProto:
    """Half of the rows demonstrations, every token attended; with what verl's worker reads beside it."""
    batch = batch_of_full_rows(rows, prompt, response, vocabulary)
    batch.meta_info["global_token_num"] = [prompt + response] * rows
    return batch


def update(worker: FusionWorker, batch: DataProto) -> dict[str, Any]:
    """The metrics of one update."""
    return worker.update_actor(batch).meta_info["metrics"]


def weights_of(worker: FusionWorker) -> dict[str, torch.Tensor]:
    """Whole weights on CPU, whichever FSDP holds them and wherever."""
    if worker._is_offload_param:  # as verl does before it sends them to the engine
        load_fsdp_model_to_gpu(worker.actor_module_fsdp)
    state = worker.actor_module_fsdp.state_dict()
    device = get_device_id()  # shards that wait in main memory are put together where the ranks' backend is
    whole = {name: each.to(device).full_tensor() if hasattr(each, "full_tensor") else each for name, each in state.items()}
    copied = {name: each.detach().cpu().clone() for name, each in whole.items()}
    if worker._is_offload_param:
        offload_fsdp_model_to_cpu(worker.actor_module_fsdp)
    return copied
