"""Which of verl's ways to shard, offload and adapt a model this package runs with, and why the others are refused.

What stands here is told at start-up; docs/scale.md says which combinations have been run.
"""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.rollout.vllm_cpu_checks import declares_ranks

STRATEGIES = ("fsdp", "fsdp2")
ACTOR, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.model"


def check_parallelism(config: DictConfig) -> None:
    """
    Raises:
        ValueError: a combination that would fail in a worker minutes later, or be ignored; names key, value and remedy.
    """
    _check_strategy(config)
    _check_sequence_parallelism(config)
    if declares_ranks(config):
        _check_cpu(config)
    _check_lora(config)


def _check_strategy(config: DictConfig) -> None:
    strategy = config.actor_rollout_ref.actor.strategy
    if strategy not in STRATEGIES:
        raise ValueError(
            f"{ACTOR}.strategy={strategy} has other workers than the FSDP ones that this package extends; choose one of "
            f"{', '.join(STRATEGIES)}"
        )


def _check_sequence_parallelism(config: DictConfig) -> None:
    size = config.actor_rollout_ref.actor.ulysses_sequence_parallel_size
    ranks = config.trainer.nnodes * config.trainer.n_gpus_per_node
    if size == 1:
        return
    if size < 1 or ranks % size:
        raise ValueError(f"{ACTOR}.ulysses_sequence_parallel_size={size} does not divide the {ranks} ranks; choose a divisor")
    if not config.actor_rollout_ref.model.use_remove_padding:
        raise ValueError(
            f"{ACTOR}.ulysses_sequence_parallel_size={size} splits packed rows, which {MODEL}.use_remove_padding=false does not "
            f"make; set {MODEL}.use_remove_padding=true"
        )


def _check_cpu(config: DictConfig) -> None:
    """Without CUDA: no flash attention, hence no packing; no pinned memory, hence no offload policy; nowhere to offload to."""
    actor = f"{ACTOR}.fsdp_config"
    refused = [
        (f"{MODEL}.use_remove_padding", "packed rows need flash attention, which needs CUDA"),
        (f"{MODEL}.enable_activation_offload", "activations are in main memory already"),
        (f"{actor}.offload_policy", "its pinned memory needs CUDA"),
        (f"{actor}.param_offload", "parameters are in main memory already"),
        (f"{actor}.optimizer_offload", "the optimizer's state is in main memory already"),
    ]
    for key, why in refused:
        if OmegaConf.select(config, key, default=False):
            raise ValueError(f"{key}=true has no meaning on CPU: {why}; set it to false")


def _check_lora(config: DictConfig) -> None:
    model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
    rank, adapter = model.get("lora_rank", 0), model.get("lora_adapter_path")
    if not rank and adapter is None:
        return
    given = f"{MODEL}.lora_rank={rank}" if rank else f"{MODEL}.lora_adapter_path={adapter}"
    if find_spec("peft") is None:
        raise ValueError(f"{given} needs the package peft, which is not installed: pip install peft")
    if rollout.name == "hf":
        raise ValueError(
            f"{given}: rollout.name=hf takes whole weights, not adapters; use rollout.name=vllm, or {MODEL}.lora_rank=0"
        )
