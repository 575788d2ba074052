"""The actor: forward by verl, loss by the estimator, counts over the whole mini-batch and all ranks.

It knows terms, not algorithms. What differs from verl's `update_policy`: micro-batch losses are normalised by global counts, so
the gradient does not depend on micro-batch size, dynamic batching or rank count; every stream that a term names is shipped;
metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp import FullyShardedDataParallel as FSDP
from torch.distributed.tensor import DTensor
from verl import DataProto
from verl.utils.device import get_device_id
from verl.utils.fsdp_utils import fsdp2_clip_grad_norm_
from verl.utils.seqlen_balancing import prepare_dynamic_batch, restore_dynamic_batch
from verl.workers.actor import DataParallelPPOActor

from unify_posttrain.algorithms import build_algorithm
from unify_posttrain.objective import Count, compute_loss, count_members
from unify_posttrain.workers.metrics import verl_metrics

logger = logging.getLogger(__name__)

MODEL_INPUTS = ("responses", "response_mask", "input_ids", "attention_mask", "position_ids")


class FusionActor(DataParallelPPOActor):
    """DataParallelPPOActor whose objective is the terms of `config.fusion.algorithm`."""

    def __init__(self, config, actor_module, actor_optimizer=None) -> None:
        super().__init__(config, actor_module, actor_optimizer)
        self.algorithm = build_algorithm(config)
        self.terms = self.algorithm.terms
        self.needs_entropy = self.algorithm.needs_entropy or config.calculate_entropy

    # Forward passes

    def compute_log_prob(self, data: DataProto, calculate_entropy: bool = False) -> dict[str, Tensor]:
        """verl's, except that with dynamic batches all ranks run the same number of forward passes."""
        if not data.meta_info["use_dynamic_bsz"] or dist.get_world_size() == 1:
            return super().compute_log_prob(data, calculate_entropy)
        max_tokens = data.meta_info["max_token_len"] * self.ulysses_sequence_parallel_size
        micro_batches, indices = prepare_dynamic_batch(data, max_token_len=max_tokens, dp_group=dist.group.WORLD)
        outputs = []
        for micro_batch in micro_batches:
            micro_batch.meta_info.update(use_dynamic_bsz=False, micro_batch_size=len(micro_batch))
            outputs.append(super().compute_log_prob(micro_batch, calculate_entropy))
        return {key: restore_dynamic_batch(torch.cat([out[key] for out in outputs]), indices) for key in outputs[0]}

    def _micro_batches(self, mini_batch: DataProto) -> list[DataProto]:
        if not self.config.use_dynamic_bsz:
            return mini_batch.split(self.config.ppo_micro_batch_size_per_gpu)
        max_tokens = self.config.ppo_max_token_len_per_gpu * self.ulysses_sequence_parallel_size
        return prepare_dynamic_batch(mini_batch, max_token_len=max_tokens, dp_group=dist.group.WORLD)[0]

    # Update

    def update_policy(self, data: DataProto) -> dict[str, float]:
        """One pass (ppo_epochs of them) over this rank's rows in S = meta_info["mini_batches"] optimizer steps.

        Args:
            data: this rank's rows; every rank must hold the same number. meta_info: `temperature`, `mini_batches` (default: from
                ppo_mini_batch_size, as verl), `term_scales` (factors by term name).

        Returns:
            Plain floats, already reduced over ranks.

        Raises:
            KeyError: a stream that a term reads is absent.
            ValueError: rows cannot be dealt evenly to the mini-batches.
        """
        self.actor_module.train()
        mini_batches = self._mini_batches(self._select(data))
        # With a single optimizer step on this batch the policy is still the one that sampled it: verl then takes old := current.
        on_policy = len(mini_batches) == 1 and self.config.ppo_epochs == 1
        records, grad_norms, skipped, empty = [], [], 0, 0
        for _ in range(self.config.ppo_epochs):
            for mini_batch in mini_batches:
                counts = self._global_counts(mini_batch)
                if not any(float(counts[term.members.key].tokens) for term in self.terms):
                    empty += 1  # on every rank alike: nothing to learn from, so no weight decay either
                    continue
                self.actor_optimizer.zero_grad()
                record, suspects = self._accumulate(mini_batch, counts, on_policy)
                grad_norm, stepped = self._clip_and_step()
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

    def _select(self, data: DataProto) -> DataProto:
        """Keep what the forward pass and the terms read."""
        wanted = dict.fromkeys((*MODEL_INPUTS, *(name for term in self.terms for name in term.streams)))
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

    def _global_counts(self, mini_batch: DataProto) -> dict[str, Count]:
        """One all-reduce of a fixed-length vector; ranks of one sequence-parallel group hold the same rows."""
        local = count_members(self.terms, mini_batch.batch)
        vector = torch.stack([value for count in local.values() for value in count]).to(get_device_id())
        dist.all_reduce(vector)
        vector = (vector / self.ulysses_sequence_parallel_size).cpu()
        return {key: Count(*vector[2 * i : 2 * i + 2]) for i, key in enumerate(local)}

    def _accumulate(self, mini_batch: DataProto, counts: Mapping[str, Count], on_policy: bool) -> tuple[dict, list[str]]:
        """Forward, loss and backward of every micro-batch. Returns summed metric shares and uids with non-finite log-probs."""
        scales = mini_batch.meta_info.get("term_scales")
        pad_token_id = mini_batch.meta_info.get("pad_token_id", 0)
        record: dict[str, Tensor] = {}
        broken: list[tuple[Tensor, DataProto]] = []
        for micro_batch in self._micro_batches(mini_batch):
            micro_batch = micro_batch.to(get_device_id())
            inputs = {**micro_batch.batch, **micro_batch.non_tensor_batch, "pad_token_id": pad_token_id}
            outputs = self._forward_micro_batch(
                inputs, temperature=mini_batch.meta_info["temperature"], calculate_entropy=self.needs_entropy
            )
            tensors = {**micro_batch.batch, **{k: outputs[k] for k in ("log_probs", "entropys") if k in outputs}}
            log_probs, mask = tensors["log_probs"], tensors["response_mask"].bool()
            if on_policy and "old_log_probs" in tensors:
                tensors["old_log_probs"] = self._old_is_current(tensors)
            loss, metrics = compute_loss(self.terms, tensors, counts, scales)
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

    def _clip_and_step(self) -> tuple[float, bool]:
        """Clip, then step unless the norm is not finite or above `fusion.max_grad_norm`. Returns (norm, stepped)."""
        limit = self.config.fusion.max_grad_norm
        if self.scaler is not None or limit is None:
            grad_norm = float(self._optimizer_step())
            return grad_norm, grad_norm == grad_norm and grad_norm != float("inf")
        if isinstance(self.actor_module, FSDP):
            norm = self.actor_module.clip_grad_norm_(max_norm=self.config.grad_clip)
        elif isinstance(self.actor_module, FSDPModule):
            norm = fsdp2_clip_grad_norm_(self.actor_module.parameters(), max_norm=self.config.grad_clip)
        else:
            norm = torch.nn.utils.clip_grad_norm_(self.actor_module.parameters(), max_norm=self.config.grad_clip)
        grad_norm = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        if not grad_norm <= limit:  # also true for NaN
            logger.warning("gradient norm %s exceeds fusion.max_grad_norm=%s: optimizer step skipped", grad_norm, limit)
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
