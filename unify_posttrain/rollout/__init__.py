"""Generation engines and agent loops of ours, registered with verl by name."""

from __future__ import annotations


def register_engines() -> None:
    """Make `rollout.name=hf` known to this process; called in the driver and in every worker, harmless when repeated."""
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY
    from verl.workers.rollout.replica import RolloutReplicaRegistry

    def load_replica() -> type:
        from unify_posttrain.rollout.hf_replica import HFReplica

        return HFReplica

    _ROLLOUT_REGISTRY[("hf", "async")] = "unify_posttrain.rollout.hf_replica.HFServerAdapter"
    RolloutReplicaRegistry.register("hf", load_replica)
