"""An update of the critic, whatever runs its model: a loss normalised by counts over the whole mini-batch and all ranks.

What differs from verl's critics: in their value loss, a mean per micro-batch and rank, a token weighs what the company makes of it
that it keeps; here every token of a mini-batch weighs the same. Metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from verl import DataProto
from verl.utils.device import get_device_id

from unify_posttrain.objective.aggregation import Aggregation, Count, at_least_one
from unify_posttrain.objective.update import Ranks
from unify_posttrain.objective.value import value_loss
from unify_posttrain.workers.micro_batches import micro_batches
from unify_posttrain.workers.ranks import worker_ranks

STREAMS = ("input_ids", "responses", "response_mask", "attention_mask", "position_ids", "values", "returns")
METRICS = ("critic/vf_loss", "critic/vf_clipfrac", "critic/vpred_mean")


class CriticUpdate(ABC):
    """A backend gives it an optimizer (`critic_optimizer`), `ulysses_sequence_parallel_size`, `_forward` and `_optimizer_step`.

    Attributes:
        config: verl's critic node.
    """

    config: Any
    critic_optimizer: Optimizer
    ulysses_sequence_parallel_size: int

    @abstractmethod
    def _forward(self, micro_batch: DataProto) -> Tensor:
        """(B, T) values of response tokens."""

    @abstractmethod
    def _optimizer_step(self) -> Tensor | float:
        """Clip and step; the gradient's norm before that."""

    def update_critic(self, data: DataProto) -> dict[str, float]:
        """One pass (ppo_epochs of them) over this rank's rows, an optimizer step per `ppo_mini_batch_size` of them.

        Args:
            data: this rank's rows with `values` and `returns`, (B, T); every rank must hold the same number.

        Returns:
            Plain floats, already reduced over ranks. As in verl `critic/vf_loss` adds up the mini-batches, the others average them.
        """
        columns = [name for name in ("multi_modal_inputs",) if name in data.non_tensor_batch]
        mini_batches = data.select(batch_keys=list(STREAMS), non_tensor_batch_keys=columns).split(self.config.ppo_mini_batch_size)
        records, grad_norms = [], []
        for _ in range(self.config.ppo_epochs):
            for mini_batch in mini_batches:
                count = self._global_count(mini_batch)
                if not float(count.tokens):
                    continue  # on every rank alike: nothing to learn from, so no weight decay either
                self.critic_optimizer.zero_grad()
                records.append(self._accumulate(mini_batch, count))
                norm = self._optimizer_step()
                grad_norms.append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        self.critic_optimizer.zero_grad()
        steps = max(len(records), 1)
        sums = self._global_sums(records)
        metrics = {name: value if name == "critic/vf_loss" else value / steps for name, value in sums.items()}
        return {**metrics, "critic/grad_norm": sum(grad_norms) / steps}

    @property
    def _ranks(self) -> Ranks:
        return worker_ranks(self.ulysses_sequence_parallel_size)

    def _global_count(self, mini_batch: DataProto) -> Count:
        """Trained tokens and rows of a mini-batch on all ranks."""
        per_row = mini_batch.batch["response_mask"].sum(dim=-1)
        return Count(*self._ranks.total(torch.stack([per_row.sum(), (per_row > 0).sum()]).double()).float())

    def _accumulate(self, mini_batch: DataProto, count: Count) -> Tensor:
        """Forward, loss and backward of every micro-batch. Returns this rank's shares of METRICS, (3,)."""
        shares, data_parallel, aggregation = [], self._ranks.data_parallel, Aggregation(self.config.loss_agg_mode)
        for micro_batch in micro_batches(mini_batch, self.config, self.ulysses_sequence_parallel_size):
            micro_batch = micro_batch.to(get_device_id())
            streams = micro_batch.batch
            mask = streams["response_mask"].bool()
            values = self._forward(micro_batch)
            losses, clipped = value_loss(values, streams["values"], streams["returns"], self.config.cliprange_value)
            loss = aggregation(losses, mask, None, count)
            # FSDP averages gradients over ranks; the shares add up to the global value only if summed.
            (loss * data_parallel).backward()
            means = [torch.where(mask, each.detach(), 0.0).sum() / at_least_one(count.tokens) for each in (clipped, values)]
            shares.append(torch.stack([loss.detach(), *means]).double())
        return torch.stack(shares).sum(dim=0)  # still on the device: the host need not wait for each micro-batch

    def _global_sums(self, records: list[Tensor]) -> dict[str, float]:
        """METRICS, summed over ranks and mini-batches."""
        own = torch.stack(records).sum(dim=0) if records else torch.zeros(len(METRICS), dtype=torch.float64)
        total = self._ranks.total(own)
        return dict(zip(METRICS, total.tolist(), strict=True))
