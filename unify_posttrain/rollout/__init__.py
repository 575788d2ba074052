"""Generation engines and agent loops of ours, registered with verl by name."""

from __future__ import annotations


def register_engines() -> None:
    """Make `rollout.name=hf` known to this process, and what `vllm` means: servers that take whole batches, and without CUDA what
    it lacks there. Called in the driver and in every worker, harmless when repeated."""
    import torch
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def load_replica() -> type:
        from unify_posttrain.rollout.hf_replica import HFReplica

        return HFReplica

    def load_cpu_replica() -> type:
        from unify_posttrain.rollout.vllm_cpu_server import CPUReplica

        return CPUReplica

    def load_batch_replica() -> type:
        from unify_posttrain.rollout.vllm_batches import BatchReplica

        return BatchReplica

    _ROLLOUT_REGISTRY[("hf", "async")] = "unify_posttrain.rollout.hf_replica.HFServerAdapter"
    RolloutReplicaRegistry.register("hf", load_replica)
    RolloutReplicaRegistry.register("vllm", load_batch_replica if torch.cuda.is_available() else load_cpu_replica)
    if not torch.cuda.is_available():
        _ROLLOUT_REGISTRY[("vllm", "async")] = "unify_posttrain.rollout.vllm_cpu.CPUServerAdapter"
