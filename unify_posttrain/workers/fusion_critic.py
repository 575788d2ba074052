"""The critic: forward by verl, loss normalised by counts over the whole mini-batch and all ranks, also without CUDA.

What differs from verl's critic: its value loss is a mean per micro-batch and rank, which weighs a token by the company it keeps;
here every token of a mini-batch weighs the same. Its model loader and forward pass insist on flash attention and bfloat16; here
they follow the configuration. Metrics are global values, the same keys on every rank and step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import verl.utils.model
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForTokenClassification, PretrainedConfig, PreTrainedModel
from verl import DataProto
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.device import get_device_id
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.critic import DataParallelPPOCritic
from verl.workers.fsdp_workers import CriticWorker

from unify_posttrain import cpu_compat
from unify_posttrain.objective.aggregation import Aggregation, Count, at_least_one
from unify_posttrain.objective.update import Ranks
from unify_posttrain.objective.value import value_loss
from unify_posttrain.workers.finite import check_resumed, check_weights
from unify_posttrain.workers.loopback import keep_on_loopback
from unify_posttrain.workers.micro_batches import forward_in_step, micro_batches
from unify_posttrain.workers.optimizers import detach_settings, keeping_settings
from unify_posttrain.workers.ranks import worker_ranks
from unify_posttrain.workers.transport import reply

STREAMS = ("input_ids", "responses", "response_mask", "attention_mask", "position_ids", "values", "returns")
METRICS = ("critic/vf_loss", "critic/vf_clipfrac", "critic/vpred_mean")


class FusionCritic(DataParallelPPOCritic):
    """DataParallelPPOCritic whose gradient does not depend on micro-batches, row order or ranks."""

    def __init__(self, config: Any, critic_module: torch.nn.Module, critic_optimizer: torch.optim.Optimizer) -> None:
        super().__init__(config, critic_module, critic_optimizer)
        self.aggregation = Aggregation(config.loss_agg_mode)
        precision = PrecisionType.to_dtype((config.model.fsdp_config.mixed_precision or {}).get("param_dtype", "bf16"))
        # verl enters autocast to bfloat16 around the forward pass, whatever precision FSDP was given.
        autocast = torch.autocast(self.device_name, dtype=precision, enabled=precision != torch.float32)
        critic_module.forward = autocast(critic_module.forward)

    def compute_values(self, data: DataProto) -> Tensor:
        """verl's, except that with dynamic batches all ranks run the same number of forward passes. Returns (B, T)."""

        def forward(part: DataProto) -> dict[str, Tensor]:
            return {"values": super(FusionCritic, self).compute_values(part)}

        return forward_in_step(forward, data, self.ulysses_sequence_parallel_size)["values"]

    def update_critic(self, data: DataProto) -> dict[str, float]:
        """One pass (ppo_epochs of them) over this rank's rows, an optimizer step per `ppo_mini_batch_size` of them.

        Args:
            data: this rank's rows with `values` and `returns`, (B, T); every rank must hold the same number.

        Returns:
            Plain floats, already reduced over ranks. As in verl `critic/vf_loss` adds up the mini-batches, the others average them.
        """
        self.critic_module.train()
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
        shares, data_parallel = [], self._ranks.data_parallel
        for micro_batch in micro_batches(mini_batch, self.config, self.ulysses_sequence_parallel_size):
            streams = micro_batch.to(get_device_id()).batch
            mask = streams["response_mask"].bool()
            values = self._forward_micro_batch({**streams, **micro_batch.non_tensor_batch})
            losses, clipped = value_loss(values, streams["values"], streams["returns"], self.config.cliprange_value)
            loss = self.aggregation(losses, mask, None, count)
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


class FusionCriticWorker(CriticWorker):
    """verl's critic worker with our critic in it. The name must not be `Worker`: verl finds its base class by that."""

    def __init__(self, config: Any) -> None:
        cpu_compat.install()
        keep_on_loopback()
        cpu_compat.join_process_group()
        super().__init__(config)

    def _build_critic_model_optimizer(self, config: Any) -> Any:
        with _loading_with(partial(load_value_model, seed=config.data_loader_seed)):
            return super()._build_critic_model_optimizer(config)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        check_weights(self.critic_module, f"critic.model.path={self.config.model.path}")
        # The checkpoint manager holds module and optimizer, not the critic, so replacing the critic is safe.
        self.critic = FusionCritic(self.config, self.critic_module, self.critic_optimizer)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="critic"))
    def compute_values(self, data: DataProto) -> DataProto:
        """verl's, packed as what came from the driver."""
        return reply(super().compute_values(data), data)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        with keeping_settings(self.critic_optimizer, self.critic_lr_scheduler):
            super().load_checkpoint(local_path, *args, **kwargs)
        if local_path is not None:
            check_resumed(self.critic_module, self.critic_optimizer, local_path)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        detach_settings(self.critic_optimizer)
        super().save_checkpoint(*args, **kwargs)


def load_value_model(
    local_path: str, torch_dtype: torch.dtype, model_config: PretrainedConfig, trust_remote_code: bool, *, seed: int
) -> PreTrainedModel:
    """A language model whose head is replaced by one value per token, drawn from `seed`.

    verl's own loader asks for flash attention whatever the configuration says; this one keeps the attention of `model_config`,
    which verl has set from `critic.model.override_config.attn_implementation`.

    Raises:
        ValueError: transformers has no token-classification model for this architecture.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )


@contextmanager
def _loading_with(loader: Callable[..., PreTrainedModel]) -> Iterator[None]:
    """Let verl's critic worker, which looks its loader up by name when it builds the model, find ours instead."""
    theirs = verl.utils.model.load_valuehead_model
    verl.utils.model.load_valuehead_model = loader
    try:
        yield
    finally:
        verl.utils.model.load_valuehead_model = theirs
