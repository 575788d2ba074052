"""How the driver speaks to the actor and the reference: the line at which another backend attaches.

The trainer and its collaborators know only `ActorPort`. Batches are DataProto on this side, whatever a backend makes of them.
"""

from __future__ import annotations

from typing import Any, Protocol

from verl import DataProto
from verl.utils.metric import reduce_metrics

from unify_posttrain.workers.micro_batches import CALCULATE_ENTROPY
from unify_posttrain.workers.transport import travelling


class ActorPort(Protocol):
    """The workers of a run as the driver sees them. B rows, T response tokens."""

    @property
    def ranks(self) -> int:
        """Data-parallel size: into how many blocks of equal size a batch is cut."""

    def log_probs(self, batch: DataProto, entropy: bool) -> tuple[DataProto, float]:
        """Under the present policy: `old_log_probs` and `entropys` (B, T), which are zeros unless they are wanted; and the MFU."""

    def reference(self, batch: DataProto) -> DataProto:
        """`ref_log_prob` (B, T)."""

    def update(self, batch: DataProto) -> dict[str, float]:
        """Optimizer steps on a batch that is dealt to ranks and mini-batches; their metrics."""

    def update_replay(self, batch: DataProto) -> dict[str, float]:
        """A fine-tuning step on replayed demonstrations, outside of the learning-rate schedule; its metrics."""

    def start_phase(self, index: int, total_steps: int) -> None:
        """Begin a phase of the run: its terms, a fresh optimizer, its learning-rate schedule over `total_steps`."""

    def values(self, batch: DataProto) -> DataProto:
        """The critic's `values` (B, T)."""

    def update_critic(self, batch: DataProto) -> DataProto:
        """Optimizer steps of the critic; their metrics in meta_info."""


class WorkerPort:
    """The workers of both backends: verl's FSDP workers (`workers.fusion_worker`), or its engine workers with the calls of those
    (`workers.engine_worker`). They take and return DataProto, packed on the way (`workers.transport`).

    Args:
        actor: their worker group.
        reference: the worker group of the reference policy; None without one.
        ranks: data-parallel size of `actor`.
        critic: the worker group of the critic; None without one.
    """

    def __init__(self, actor: Any, reference: Any | None, ranks: int, critic: Any | None = None) -> None:
        self.actor, self.reference_policy, self.ranks, self.critic = actor, reference, ranks, critic

    @classmethod
    def of(cls, trainer: Any) -> WorkerPort:
        """The workers that verl's trainer has started."""
        actor = trainer.actor_rollout_wg
        reference = trainer.ref_policy_wg if trainer.use_reference_policy else None
        return cls(actor, reference, trainer._get_dp_size(actor, "actor"), trainer.critic_wg if trainer.use_critic else None)

    def log_probs(self, batch: DataProto, entropy: bool) -> tuple[DataProto, float]:
        batch.meta_info[CALCULATE_ENTROPY] = entropy
        output = self.actor.compute_log_prob(travelling(batch))
        del batch.meta_info[CALCULATE_ENTROPY]  # verl merges meta_info with the output's next, and refuses differences
        return output, 0  # these workers do not report how busy a forward pass keeps them

    def reference(self, batch: DataProto) -> DataProto:
        return self.reference_policy.compute_ref_log_prob(travelling(batch))

    def update(self, batch: DataProto) -> dict[str, float]:
        return reduce_metrics(self.actor.update_actor(travelling(batch)).meta_info["metrics"])

    def update_replay(self, batch: DataProto) -> dict[str, float]:
        return reduce_metrics(self.actor.update_replay(travelling(batch)).meta_info["metrics"])

    def start_phase(self, index: int, total_steps: int) -> None:
        self.actor.start_phase(index, total_steps)

    def values(self, batch: DataProto) -> DataProto:
        return self.critic.compute_values(travelling(batch))

    def update_critic(self, batch: DataProto) -> DataProto:
        return self.critic.update_critic(travelling(batch))
