"""The log-prob stages of a step: only rows of which a term reads the result, and what else is measured at its start."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor
from verl import DataProto
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.objective import Entropy, token_class
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN
from unify_posttrain.trainer.port import ActorPort

# What verl logs in the log-prob stage; reported as 0 in a step that needs no log-probabilities, so that keys do not come and go.
LOG_PROB_METRICS = ("actor/entropy", "perf/mfu/actor_infer")
ROLLOUT_PROB_METRICS = tuple(
    f"training/rollout_{name}"
    for name in ("probs_diff_valid", "probs_diff_max", "probs_diff_mean", "probs_diff_std", "actor_probs_pearson_corr")
)
START_ENTROPYS = "start_entropys"
BATCH_ENTROPY = "batch_entropy"

Stage = Callable[[DataProto], DataProto]


class LogProbs:
    """Runs verl's log-prob stages on the rows that need them.

    Args:
        port: the workers.
        warmup: `trainer.critic_warmup`, before which the actor is not updated.
        compared: rollouts carry the engine's log-probabilities, which verl's stage compares with the actor's.
        reference: rows that need the reference policy: `none`, `read` (by a term), or `all` (by verl, with
            `algorithm.use_kl_in_reward`).
    """

    def __init__(self, port: ActorPort, warmup: int, compared: bool, reference: str) -> None:
        self.port, self.warmup = port, warmup
        self.compared, self.reference_rows = compared, reference

    @classmethod
    def from_config(cls, config: Any, port: ActorPort, use_reference: bool) -> LogProbs:
        return cls(
            port,
            warmup=config.trainer.critic_warmup,
            compared=bool(config.actor_rollout_ref.rollout.calculate_log_probs),
            reference=("all" if config.algorithm.use_kl_in_reward else "read") if use_reference else "none",
        )

    def old(self, algorithm: Algorithm, batch: DataProto, mini_batches: int, stage: Stage) -> tuple[DataProto, dict[str, float]]:
        """Old log-probabilities, and the mean entropy of each mini-batch where a term reads it.

        Args:
            mini_batches: optimizer steps of the training step.
            stage: verl's, which asks `present` for log-probabilities.

        Returns:
            the batch, and the metrics of a stage that did not run.
        """
        reads_entropy = bool(algorithm.token_classes_reading(BATCH_ENTROPY))
        streams = ("old_log_probs", START_ENTROPYS) if reads_entropy else ("old_log_probs",)
        classes = algorithm.token_classes_reading("old_log_probs") | ({"trained"} if reads_entropy else set())
        batch, ran = self._on_rows(batch, classes, streams, stage)
        entropys = batch.batch.pop(START_ENTROPYS) if START_ENTROPYS in batch.batch else None
        if reads_entropy:
            mask = batch.batch["response_mask"]
            batch.batch[BATCH_ENTROPY] = batch_entropy(entropys, mask, self.port.ranks, mini_batches)
        absent = (*LOG_PROB_METRICS, *(ROLLOUT_PROB_METRICS if self.compared else ()))
        return batch, {} if ran else dict.fromkeys(absent, 0.0)

    def present(self, algorithm: Algorithm, batch: DataProto, step: int) -> tuple[DataProto, float]:
        """Log-probabilities under the present policy: in place of the method that verl's stage calls.

        Keeps the entropies that verl drops, has none computed that nobody reads, and keeps demonstrations out of verl's comparison
        of engine and actor.
        """
        output, mfu = self.port.log_probs(batch, entropy=self._entropy_is_read(algorithm, step))
        batch.batch[START_ENTROPYS] = output.batch["entropys"]
        if "prefix_mask" in batch.batch and "rollout_log_probs" in batch.batch:
            given = batch.batch["prefix_mask"]
            batch.batch["rollout_log_probs"] = torch.where(given, output.batch["old_log_probs"], batch.batch["rollout_log_probs"])
        return output, mfu

    def _entropy_is_read(self, algorithm: Algorithm, step: int) -> bool:
        """By a term, or as `actor/entropy`: an update with an entropy bonus reports that metric itself, over this stage's."""
        if algorithm.token_classes_reading(BATCH_ENTROPY):
            return True
        updates = self.warmup == 0 or step >= self.warmup
        return not (updates and any(isinstance(term.loss, Entropy) for term in algorithm.terms))

    def reference(self, algorithm: Algorithm, batch: DataProto, stage: Stage) -> DataProto:
        """Log-probabilities of the reference policy."""
        if self.reference_rows == "none":
            return batch
        if self.reference_rows == "all":
            return stage(batch)
        return self._on_rows(batch, algorithm.token_classes_reading("ref_log_prob"), ("ref_log_prob",), stage)[0]

    def _on_rows(
        self, batch: DataProto, classes: Collection[str], streams: tuple[str, ...], stage: Stage
    ) -> tuple[DataProto, bool]:
        """Run a stage on the rows that have a token of these classes; the others get zeros, which nobody reads.

        Returns:
            the batch, and whether the stage ran.
        """
        if KIND_COLUMN not in batch.non_tensor_batch:
            return stage(batch), True
        needed = torch.zeros(len(batch), dtype=torch.bool)
        for which in classes:
            needed |= token_class(batch.batch, which).any(dim=-1)
        if bool(needed.all()):
            return stage(batch), True
        values = {stream: torch.zeros(batch.batch["responses"].shape, dtype=torch.float32) for stream in streams}
        if bool(needed.any()):
            index = needed.nonzero().squeeze(-1)
            selected, pad_size = pad_dataproto_to_divisor(batch.select_idxs(index), self.port.ranks)
            if pad_size:
                selected.batch["response_mask"][-pad_size:] = 0  # padding must not enter verl's entropy and debug metrics
            computed = unpad_dataproto(stage(selected), pad_size).batch
            for stream, value in values.items():
                value[index] = computed[stream].to(value.dtype)
        for stream, value in values.items():
            batch.batch[stream] = value
        return batch, bool(needed.any())


def batch_entropy(entropys: Tensor, response_mask: Tensor, ranks: int, mini_batches: int) -> Tensor:
    """(B,) mean entropy over the trained tokens of the mini-batch that a row belongs to.

    Args:
        entropys, response_mask: (B, T), rows in the order in which they go to ranks and mini-batches: block r·S + m of equal size.
        ranks, mini_batches: R and S.
    """
    mask = response_mask.bool()
    blocks = torch.arange(len(mask)) // (len(mask) // (ranks * mini_batches))
    mini = blocks % mini_batches
    totals = torch.zeros(mini_batches).index_add(0, mini, torch.where(mask, entropys.float(), 0.0).sum(dim=-1))
    tokens = torch.zeros(mini_batches).index_add(0, mini, mask.sum(dim=-1).float())
    return (totals / tokens.clamp(min=1))[mini]
