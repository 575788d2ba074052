"""Starting the servers of `rollout.name=hf`: before verl's half of the engine is imported, as they import much themselves."""

from __future__ import annotations

from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from verl.utils import hf_tokenizer

from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.hf_server import HFServer

ENGINE = "hf"
CONCURRENCY, CONTROL_CALLS = 1000, 16  # calls of a server under way at least, and those beside requests: as verl has them


def server_name(replica_rank: int) -> str:
    """Ray name of a replica's server; unique within the job, whose namespace is its own."""
    return f"unify_hf_server_{replica_rank}"


def start_server(replica_rank: int, rollout: Any, model: Any) -> Any:
    """The server of a replica: started by whoever asks first, the same one for all who ask later.

    Args:
        replica_rank: which replica.
        rollout, model: verl's nodes `actor_rollout_ref.rollout` and `.model`.
    """
    custom = rollout.custom or {}
    path, trust = model.path, bool(model.get("trust_remote_code", False))
    tokenizer = hf_tokenizer(path, trust_remote_code=trust)
    return (
        ray.remote(HFServer)
        .options(
            name=server_name(replica_rank),
            get_if_exists=True,
            max_concurrency=max(CONCURRENCY, rollout.max_num_seqs + CONTROL_CALLS),
            num_cpus=0,
        )
        .remote(
            model_path=path,
            pad_id=tokenizer.pad_token_id,
            eos_ids=end_tokens(path, tokenizer.eos_token_id, trust),
            response_length=rollout.response_length,
            max_context=rollout.max_model_len or rollout.prompt_length + rollout.response_length,
            max_batch=rollout.max_num_seqs,
            gather_seconds=custom["gather_seconds"],
            lanes=custom.get("lanes", 1),
            dtype=rollout.dtype,
            trust_remote_code=trust,
            override_config=OmegaConf.to_container(OmegaConf.create(model.get("override_config", {}))),
        )
    )


def start_servers(config: DictConfig) -> list[Any]:
    """Start the servers of all ranks, if this engine is the run's, so that they import what they need while the trainer and its
    workers do. Ray ends them when nobody holds what is returned, until a replica does."""
    part = config.actor_rollout_ref
    if part.rollout.name != ENGINE:
        return []
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    return [start_server(rank, part.rollout, part.model) for rank in range(ranks)]
