"""An update of the actor, whatever runs its model: cuts the batch, asks for gradients, clips and steps (`objective.update`).

It knows terms, not algorithms, and no backend. What differs from verl's updates: micro-batch losses are normalised by global
counts, so the gradient does not depend on micro-batch size, dynamic batching or rank count; every stream that a term names is
shipped; metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from verl import DataProto
from verl.utils.fsdp_utils import fsdp2_clip_grad_norm_

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.objective import MiniBatchUpdate, Term, UpdateRecord, may_step
from unify_posttrain.workers.metrics import verl_metrics
from unify_posttrain.workers.micro_batches import micro_batches
from unify_posttrain.workers.ranks import worker_ranks

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("responses", "response_mask", "input_ids", "attention_mask", "position_ids")


class ActorUpdate(ABC):
    """The terms of `config.fusion.algorithm`, phase by phase.

    A backend gives it a model (`actor_module`), an optimizer (`actor_optimizer`), `ulysses_sequence_parallel_size` and `_backward`.

    Attributes:
        config: `actor_rollout_ref.actor`, a FusionActorConfig.
    """

    config: Any
    actor_module: nn.Module
    actor_optimizer: Optimizer
    ulysses_sequence_parallel_size: int

    def begin(self) -> None:
        """To be called once `config` is there."""
        self.phases = build_algorithm(self.config).phases
        self.start_phase(0)

    def start_phase(self, index: int) -> None:
        """Take the terms of a phase of the run; most algorithms have one."""
        phase = self.phases[index]
        self.algorithm, self.grad_clip = phase.algorithm, phase.grad_clip or self.config.grad_clip
        self.terms = self.algorithm.terms
        self.needs_entropy = self.algorithm.needs_entropy or self.config.calculate_entropy

    @abstractmethod
    def _backward(self, micro_batch: DataProto, update: MiniBatchUpdate) -> None:
        """Forward pass of a micro-batch, `update.loss` of what it gives, backward pass."""

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
        replay = data.meta_info.get("objective") == "replay"
        terms = self.algorithm.replay_terms if replay else self.terms
        epochs = data.meta_info["epochs"] if replay else self.config.ppo_epochs
        grad_clip = data.meta_info["grad_clip"] if replay else self.grad_clip
        mini_batches = self._mini_batches(self._select(data, terms))
        ranks, record = worker_ranks(self.ulysses_sequence_parallel_size), UpdateRecord()
        single_pass, skips = epochs == 1 and not replay, self.config.fusion.skip_zero_advantage
        for _ in range(epochs):
            for number, mini_batch in enumerate(mini_batches):
                scales = mini_batch.meta_info.get("term_scales")
                only = len(mini_batches) == 1 and epochs == 1
                first = single_pass and number == 0 and self.config.fusion.first_step_is_current
                update = MiniBatchUpdate(terms, mini_batch.batch, ranks, scales=scales, old_is_current=only or first, skips=skips)
                if update.empty:
                    record.empty += 1
                    continue
                self.actor_optimizer.zero_grad()
                self._accumulate(_computed(mini_batch, update), update)
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
        for micro_batch in self._micro_batches(mini_batch):
            self._backward(micro_batch, update)

    def _micro_batches(self, mini_batch: DataProto) -> list[DataProto]:
        return micro_batches(mini_batch, self.config, self.ulysses_sequence_parallel_size)

    def _clip_and_step(self, grad_clip: float) -> tuple[float, bool]:
        """Clip, then step unless the norm is not finite or above `fusion.max_grad_norm`. Returns (norm, stepped)."""
        grad_norm = clip_gradient(self.actor_module, grad_clip)
        limit = self.algorithm.fusion.max_grad_norm
        if not may_step(grad_norm, limit):
            why = "is not finite" if limit is None else f"is not finite or exceeds fusion.max_grad_norm={limit}"
            logger.warning("gradient norm %s %s: optimizer step skipped", grad_norm, why)
            self.actor_optimizer.zero_grad()
            return grad_norm, False
        self.actor_optimizer.step()
        return grad_norm, True


def _computed(mini_batch: DataProto, update: MiniBatchUpdate) -> DataProto:
    """The rows that `update` wants to be computed."""
    if update.rows is None or (len(update.rows) == len(mini_batch) and not bool(update.silent.any())):
        return mini_batch
    rows = mini_batch.select_idxs(update.rows)
    for mask in ("response_mask", "prefix_mask"):
        if mask in rows.batch:
            rows.batch[mask][update.silent] = 0
    return rows


def clip_gradient(module: nn.Module, limit: float) -> float:
    """Scale the gradient of a model, sharded by FSDP or whole, to a norm of at most `limit`. Returns its norm before that."""
    if isinstance(module, FSDP):
        norm = module.clip_grad_norm_(max_norm=limit)
    elif isinstance(module, FSDPModule):
        norm = fsdp2_clip_grad_norm_(module.parameters(), max_norm=limit)
    else:
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), max_norm=limit)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
