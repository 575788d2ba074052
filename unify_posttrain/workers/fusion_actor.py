"""The actor: forward by verl, loss by the estimator, counts over the whole mini-batch and all ranks.

It knows terms, not algorithms. What differs from verl's `update_policy`: micro-batch losses are normalised by global counts, so
the gradient does not depend on micro-batch size, dynamic batching or rank count; every stream that a term names is shipped;
metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from verl import DataProto
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import fsdp2_clip_grad_norm_

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.objective import Count, Term, compute_loss, count_members
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.metrics import verl_metrics
from unify_posttrain.workers.micro_batches import forward_in_step, micro_batches

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("responses", "response_mask", "input_ids", "attention_mask", "position_ids")


class FusionActor(ChunkedForward):
    """DataParallelPPOActor whose objective is the terms of `config.fusion.algorithm`."""

    def __init__(self, config, actor_module, actor_optimizer=None) -> None:
        super().__init__(config, actor_module, actor_optimizer, config.fusion.logits_chunk)
        self.phases = build_algorithm(config).phases
        self.start_phase(0)

    def start_phase(self, index: int) -> None:
        """Take the terms of a phase of the run; most algorithms have one."""
        self.algorithm = self.phases[index].algorithm
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
        grad_clip = data.meta_info["grad_clip"] if replay else self.config.grad_clip
        mini_batches = self._mini_batches(self._select(data, terms))
        # With a single optimizer step on this batch the policy is still the one that sampled it: verl then takes old := current.
        on_policy = len(mini_batches) == 1 and epochs == 1
        records, grad_norms, skipped, empty = [], [], 0, 0
        for _ in range(epochs):
            for mini_batch in mini_batches:
                counts = self._global_counts(mini_batch, terms)
                if not any(float(counts[term.members.key].tokens) for term in terms):
                    empty += 1  # on every rank alike: nothing to learn from, so no weight decay either
                    continue
                self.actor_optimizer.zero_grad()
                record, suspects = self._accumulate(mini_batch, terms, counts, on_policy)
                grad_norm, stepped = self._clip_and_step(grad_clip)
                skipped += not stepped
                if not stepped and suspects:
                    logger.warning("non-finite log-probabilities in groups %s", ", ".join(suspects[:8]))
                records.append(record)
                grad_norms.append(grad_norm)
        self.actor_optimizer.zero_grad()
        record = self._reduce(records)
        finite = [norm for norm in grad_norms if norm == norm]
        return verl_metrics(
            record,
            self.algorithm,
            steps=len(records),
            grad_norm=sum(finite) / len(finite) if finite else 0.0,
            grad_skipped=skipped,
            steps_without_members=empty,
        )

    def _select(self, data: DataProto, terms: Sequence[Term]) -> DataProto:
        """Keep what the forward pass and the terms read."""
        wanted = dict.fromkeys((*MODEL_INPUTS, *(name for term in terms for name in term.streams)))
        absent = [name for name in wanted if name not in data.batch]
        if absent:
            raise KeyError(f"algorithm={self.algorithm.name} needs {absent} in the batch; present: {sorted(data.batch.keys())}")
        keys = [*wanted, *(name for name in ("prefix_mask",) if name in data.batch)]
        columns = [name for name in ("multi_modal_inputs", "uid") if name in data.non_tensor_batch]
        return data.select(batch_keys=keys, non_tensor_batch_keys=columns)

    def _mini_batches(self, data: DataProto) -> list[DataProto]:
        number = data.meta_info.get("mini_batches")
        if number is None:
            return data.split(self.config.ppo_mini_batch_size)
        if len(data) % number:
            raise ValueError(f"{len(data)} rows of a rank cannot be dealt to {number} mini-batches")
        return data.split(len(data) // number)

    @property
    def _data_parallel_size(self) -> int:
        return dist.get_world_size() // self.ulysses_sequence_parallel_size

    def _global_counts(self, mini_batch: DataProto, terms: Sequence[Term]) -> dict[str, Count]:
        """One all-reduce of a fixed-length vector; ranks of one sequence-parallel group hold the same rows."""
        local = count_members(terms, mini_batch.batch)
        vector = torch.stack([value for count in local.values() for value in count]).to(get_device_id())
        dist.all_reduce(vector)
        vector = (vector / self.ulysses_sequence_parallel_size).cpu()
        return {key: Count(*vector[2 * i : 2 * i + 2]) for i, key in enumerate(local)}

    def _accumulate(
        self, mini_batch: DataProto, terms: Sequence[Term], counts: Mapping[str, Count], on_policy: bool
    ) -> tuple[dict, list[str]]:
        """Forward, loss and backward of every micro-batch. Returns summed metric shares and uids with non-finite log-probs."""
        scales = mini_batch.meta_info.get("term_scales")
        pad_token_id = mini_batch.meta_info.get("pad_token_id", 0)
        record: dict[str, Tensor] = {}
        broken: list[tuple[Tensor, DataProto]] = []
        for micro_batch in micro_batches(mini_batch, self.config, self.ulysses_sequence_parallel_size):
            micro_batch = micro_batch.to(get_device_id())
            inputs = {**micro_batch.batch, **micro_batch.non_tensor_batch, "pad_token_id": pad_token_id}
            outputs = self._forward_micro_batch(
                inputs, temperature=mini_batch.meta_info["temperature"], calculate_entropy=self.needs_entropy
            )
            tensors = {**micro_batch.batch, **{k: outputs[k] for k in ("log_probs", "entropys") if k in outputs}}
            log_probs, mask = tensors["log_probs"], tensors["response_mask"].bool()
            if on_policy and "old_log_probs" in tensors:
                tensors["old_log_probs"] = self._old_is_current(tensors)
            loss, metrics = compute_loss(terms, tensors, counts, scales)
            # FSDP averages gradients over ranks; the shares add up to the global value only if summed.
            loss = loss * self._data_parallel_size
            (loss if self.scaler is None else self.scaler.scale(loss)).backward()
            for name, value in metrics.items():
                record[name] = record[name] + value if name in record else value
            broken.append(((~torch.isfinite(log_probs) & mask).any(dim=-1), micro_batch))
        uids = [
            str(uid)
            for rows, micro_batch in broken
            if bool(rows.any()) and "uid" in micro_batch.non_tensor_batch
            for uid in micro_batch.non_tensor_batch["uid"][rows.cpu().numpy()]
        ]
        return record, uids

    def _old_is_current(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """old_log_probs := log_probs on sampled tokens; those of demonstrations are what was computed for them."""
        current, old = tensors["log_probs"].detach(), tensors["old_log_probs"]
        return torch.where(tensors["prefix_mask"], old, current) if "prefix_mask" in tensors else current

    def _clip_and_step(self, grad_clip: float) -> tuple[float, bool]:
        """Clip, then step unless the norm is not finite or above `fusion.max_grad_norm`. Returns (norm, stepped)."""
        if self.scaler is not None:
            grad_norm = float(self._optimizer_step())
            return grad_norm, math.isfinite(grad_norm)
        if isinstance(self.actor_module, FSDP):
            norm = self.actor_module.clip_grad_norm_(max_norm=grad_clip)
        elif isinstance(self.actor_module, FSDPModule):
            norm = fsdp2_clip_grad_norm_(self.actor_module.parameters(), max_norm=grad_clip)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.actor_module.parameters(), max_norm=grad_clip)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        limit = self.algorithm.fusion.max_grad_norm
        if not math.isfinite(grad_norm) or (limit is not None and grad_norm > limit):
            why = "is not finite" if limit is None else f"is not finite or exceeds fusion.max_grad_norm={limit}"
            logger.warning("gradient norm %s %s: optimizer step skipped", grad_norm, why)
            self.actor_optimizer.zero_grad()
            return grad_norm, False
        self.actor_optimizer.step()
        return grad_norm, True

    def _reduce(self, records: list[dict[str, Tensor]]) -> dict[str, list[float]]:
        """Sum the shares of all ranks, per optimizer step."""
        if not records:
            return {}
        names = list(records[0])
        values = torch.stack([torch.stack([record[name].double() for name in names]) for record in records])
        dist.all_reduce(values)
        values = (values / self.ulysses_sequence_parallel_size).cpu()
        return {name: values[:, column].tolist() for column, name in enumerate(names)}
