"""The log-prob stages of a step: only rows of which a term reads the result, and what else is measured at its start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from verl import DataProto
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer
from verl.protocol import pad_dataproto_to_divisor, unpad_dataproto

from unify_posttrain.objective import Entropy, token_class
from unify_posttrain.trainer.batch_mixer import KIND_COLUMN
from unify_posttrain.workers.forward import CALCULATE_ENTROPY

# What verl logs in the log-prob stage; reported as 0 in a step that needs no log-probabilities, so that keys do not come and go.
LOG_PROB_METRICS = ("actor/entropy", "perf/mfu/actor_infer")
ROLLOUT_PROB_METRICS = tuple(
    f"training/rollout_{name}"
    for name in ("probs_diff_valid", "probs_diff_max", "probs_diff_mean", "probs_diff_std", "actor_probs_pearson_corr")
)
START_ENTROPYS = "start_entropys"
BATCH_ENTROPY = "batch_entropy"


class LogProbStages(SeparateRayPPOTrainer):
    """Part of FusionTrainer."""

    algorithm: Any
    mini_batches: int

    def _fit_compute_log_prob(self, batch: DataProto) -> DataProto:
        compared = ROLLOUT_PROB_METRICS if self.config.actor_rollout_ref.rollout.calculate_log_probs else ()
        reads_entropy = bool(self.algorithm.token_classes_reading(BATCH_ENTROPY))
        streams = ("old_log_probs", START_ENTROPYS) if reads_entropy else ("old_log_probs",)
        batch = self._on_rows_reading(batch, streams, super()._fit_compute_log_prob, (*LOG_PROB_METRICS, *compared))
        entropys = batch.batch.pop(START_ENTROPYS) if START_ENTROPYS in batch.batch else None
        if reads_entropy:
            ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
            batch.batch[BATCH_ENTROPY] = batch_entropy(entropys, batch.batch["response_mask"], ranks, self.mini_batches)
        return batch

    def _compute_old_log_prob(self, batch: DataProto) -> tuple[DataProto, float]:
        """verl's; keeps the entropies that it drops, has none computed that nobody reads, and keeps demonstrations out of its
        comparison of engine and actor."""
        batch.meta_info[CALCULATE_ENTROPY] = self._start_entropy_is_read
        output, mfu = super()._compute_old_log_prob(batch)
        del batch.meta_info[CALCULATE_ENTROPY]
        batch.batch[START_ENTROPYS] = output.batch["entropys"]
        if "prefix_mask" in batch.batch and "rollout_log_probs" in batch.batch:
            given = batch.batch["prefix_mask"]
            batch.batch["rollout_log_probs"] = torch.where(given, output.batch["old_log_probs"], batch.batch["rollout_log_probs"])
        return output, mfu

    @property
    def _start_entropy_is_read(self) -> bool:
        """By a term, or as `actor/entropy`: an update with an entropy bonus reports that metric itself, over this stage's."""
        if self.algorithm.token_classes_reading(BATCH_ENTROPY):
            return True
        warmup = self.config.trainer.critic_warmup
        updates = warmup == 0 or self.global_steps >= warmup
        return not (updates and any(isinstance(term.loss, Entropy) for term in self.algorithm.terms))

    def _fit_compute_ref_log_prob(self, batch: DataProto) -> DataProto:
        if not self.use_reference_policy:
            return batch
        if self.config.algorithm.use_kl_in_reward:
            return super()._fit_compute_ref_log_prob(batch)  # read by verl's reward, whatever the terms read
        return self._on_rows_reading(batch, ("ref_log_prob",), super()._fit_compute_ref_log_prob, ())

    def _on_rows_reading(
        self, batch: DataProto, streams: tuple[str, ...], stage: Callable[[DataProto], DataProto], metrics: tuple[str, ...]
    ) -> DataProto:
        """Run a stage on the rows that have a token of which a term reads the first stream (or, for entropies, any trained
        token); the others get zeros, which nobody reads."""
        if KIND_COLUMN not in batch.non_tensor_batch:
            return stage(batch)
        classes = self.algorithm.token_classes_reading(streams[0]) | ({"trained"} if START_ENTROPYS in streams else set())
        needed = torch.zeros(len(batch), dtype=torch.bool)
        for which in classes:
            needed |= token_class(batch.batch, which).any(dim=-1)
        if bool(needed.all()):
            return stage(batch)
        values = {stream: torch.zeros(batch.batch["responses"].shape, dtype=torch.float32) for stream in streams}
        if bool(needed.any()):
            index = needed.nonzero().squeeze(-1)
            ranks = self._get_dp_size(self.actor_rollout_wg, "actor")
            selected, pad_size = pad_dataproto_to_divisor(batch.select_idxs(index), ranks)
            if pad_size:
                selected.batch["response_mask"][-pad_size:] = 0  # padding must not enter verl's entropy and debug metrics
            computed = unpad_dataproto(stage(selected), pad_size).batch
            for stream, value in values.items():
                value[index] = computed[stream].to(value.dtype)
        else:
            self.metrics.update(dict.fromkeys(metrics, 0.0))
        for stream, value in values.items():
            batch.batch[stream] = value
        return batch


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
