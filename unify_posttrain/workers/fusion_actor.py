"""The actor: forward by verl, everything about terms, counts and records by the estimator (`objective.update`).

It knows terms, not algorithms: it cuts the batch, runs the model, clips the sharded gradient and steps. What differs from verl's
`update_policy`: micro-batch losses are normalised by global counts, so the gradient does not depend on micro-batch size, dynamic
batching or rank count; every stream that a term names is shipped; metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from verl import DataProto
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import fsdp2_clip_grad_norm_

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.objective import MiniBatchUpdate, Term, UpdateRecord, may_step
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.metrics import verl_metrics
from unify_posttrain.workers.micro_batches import forward_in_step, micro_batches
from unify_posttrain.workers.ranks import worker_ranks

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("responses", "response_mask", "input_ids", "attention_mask", "position_ids")


class FusionActor(ChunkedForward):
    """DataParallelPPOActor whose objective is the terms of `config.fusion.algorithm`."""

    def __init__(self, config, actor_module, actor_optimizer=None) -> None:
        super().__init__(config, actor_module, actor_optimizer, config.fusion.logits_chunk, config.fusion.trim_padding)
        self.phases = build_algorithm(config).phases
        self.start_phase(0)

    def start_phase(self, index: int) -> None:
        """Take the terms of a phase of the run; most algorithms have one."""
        phase = self.phases[index]
        self.algorithm, self.grad_clip = phase.algorithm, phase.grad_clip or self.config.grad_clip
        self.terms = self.algorithm.terms
        self.needs_entropy = self.algorithm.needs_entropy or self.config.calculate_entropy

    # Forward passes

    def compute_log_prob(self, data: DataProto, calculate_entropy: bool = False) -> dict[str, Tensor]:
        """verl's, except that with dynamic batches all ranks run the same number of forward passes."""

        def forward(part: DataProto) -> dict[str, Tensor]:
            return super(FusionActor, self).compute_log_prob(part, calculate_entropy)

        return forward_in_step(forward, data, self.ulysses_sequence_parallel_size)

    # Update

    def update_policy(self, data: DataProto) -> dict[str, float]:
        """One pass (ppo_epochs of them) over this rank's rows in S = meta_info["mini_batches"] optimizer steps.

        Args:
            data: this rank's rows; every rank must hold the same number. meta_info: `temperature`, `mini_batches` (default: from
                ppo_mini_batch_size, as verl), `term_scales` (factors by term name), `objective` (`replay`: the algorithm's
                `replay_terms`, `epochs` times, clipped at `grad_clip`).

        Returns:
            Plain floats, already reduced over ranks.

        Raises:
            KeyError: a stream that a term reads is absent.
            ValueError: rows cannot be dealt evenly to the mini-batches.
        """
        self.actor_module.train()
        replay = data.meta_info.get("objective") == "replay"
        terms = self.algorithm.replay_terms if replay else self.terms
        epochs = data.meta_info["epochs"] if replay else self.config.ppo_epochs
        grad_clip = data.meta_info["grad_clip"] if replay else self.grad_clip
        mini_batches = self._mini_batches(self._select(data, terms))
        ranks, record = worker_ranks(self.ulysses_sequence_parallel_size), UpdateRecord()
        single_pass = epochs == 1 and not replay
        for _ in range(epochs):
            for number, mini_batch in enumerate(mini_batches):
                scales = mini_batch.meta_info.get("term_scales")
                only = len(mini_batches) == 1 and epochs == 1
                first = single_pass and number == 0 and self.config.fusion.first_step_is_current
                update = MiniBatchUpdate(terms, mini_batch.batch, ranks, scales=scales, old_is_current=only or first)
                if update.empty:
                    record.empty += 1
                    continue
                self.actor_optimizer.zero_grad()
                self._accumulate(mini_batch, update)
                grad_norm, stepped = self._clip_and_step(grad_clip)
                suspects = [] if stepped else update.suspects()
                if suspects:
                    logger.warning("non-finite log-probabilities in groups %s", ", ".join(suspects[:8]))
                record.add(update, grad_norm, stepped)
        self.actor_optimizer.zero_grad()
        return verl_metrics(
            record.reduced(ranks),
            self.algorithm,
            steps=len(record.steps),
            grad_norm=record.grad_norm,
            grad_skipped=record.skipped,
            steps_without_members=record.empty,
        )

    def _select(self, data: DataProto, terms: Sequence[Term]) -> DataProto:
        """Keep what the forward pass and the terms read; `prefix_mask` if there is one, even if no term insists on it."""
        masks = ("prefix_mask",) if any(term.needs_prefix_mask for term in terms) else ()
        wanted = dict.fromkeys((*MODEL_INPUTS, *masks, *(name for term in terms for name in term.streams)))
        absent = [name for name in wanted if name not in data.batch]
        if absent:
            raise KeyError(f"algorithm={self.algorithm.name} needs {absent} in the batch; present: {sorted(data.batch.keys())}")
        keys = list(dict.fromkeys((*wanted, *(name for name in ("prefix_mask",) if name in data.batch))))
        columns = [name for name in ("multi_modal_inputs", "uid") if name in data.non_tensor_batch]
        return data.select(batch_keys=keys, non_tensor_batch_keys=columns)

    def _mini_batches(self, data: DataProto) -> list[DataProto]:
        number = data.meta_info.get("mini_batches")
        if number is None:
            return data.split(self.config.ppo_mini_batch_size)
        if len(data) % number:
            raise ValueError(f"{len(data)} rows of a rank cannot be dealt to {number} mini-batches")
        return data.split(len(data) // number)

    def _accumulate(self, mini_batch: DataProto, update: MiniBatchUpdate) -> None:
        """Forward, loss and backward of every micro-batch."""
        pad_token_id = mini_batch.meta_info.get("pad_token_id", 0)
        for micro_batch in micro_batches(mini_batch, self.config, self.ulysses_sequence_parallel_size):
            micro_batch = micro_batch.to(get_device_id())
            inputs = {**micro_batch.batch, **micro_batch.non_tensor_batch, "pad_token_id": pad_token_id}
            outputs = self._forward_micro_batch(
                inputs, temperature=mini_batch.meta_info["temperature"], calculate_entropy=self.needs_entropy
            )
            tensors = {**micro_batch.batch, **{k: outputs[k] for k in ("log_probs", "entropys") if k in outputs}}
            loss = update.loss(tensors, list(micro_batch.non_tensor_batch.get("uid", ())))
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()

    def _clip_and_step(self, grad_clip: float) -> tuple[float, bool]:
        """Clip, then step unless the norm is not finite or above `fusion.max_grad_norm`. Returns (norm, stepped)."""
        if self.scaler is not None:
            grad_norm = float(self._optimizer_step())
            return grad_norm, may_step(grad_norm, limit=None)  # verl's own rule: it has stepped already
        if isinstance(self.actor_module, FSDP):
            norm = self.actor_module.clip_grad_norm_(max_norm=grad_clip)
        elif isinstance(self.actor_module, FSDPModule):
            norm = fsdp2_clip_grad_norm_(self.actor_module.parameters(), max_norm=grad_clip)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.actor_module.parameters(), max_norm=grad_clip)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        limit = self.algorithm.fusion.max_grad_norm
        if not may_step(grad_norm, limit):
            why = "is not finite" if limit is None else f"is not finite or exceeds fusion.max_grad_norm={limit}"
            logger.warning("gradient norm %s %s: optimizer step skipped", grad_norm, why)
            self.actor_optimizer.zero_grad()
            return grad_norm, False
        self.actor_optimizer.step()
        return grad_norm, True
