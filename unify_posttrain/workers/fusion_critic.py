"""The critic on verl's DataParallelPPOCritic: forward by verl, the update by `critic_update`, also without CUDA.

verl's model loader and forward pass insist on flash attention and bfloat16; here they follow the configuration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import verl.utils.model
from torch import Tensor
from transformers import PreTrainedModel
from verl import DataProto
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.critic import DataParallelPPOCritic
from verl.workers.fsdp_workers import CriticWorker

from unify_posttrain.workers import process_group
from unify_posttrain.workers.critic_update import CriticUpdate
from unify_posttrain.workers.finite import check_resumed, check_weights
from unify_posttrain.workers.micro_batches import forward_in_step
from unify_posttrain.workers.optimizers import detach_settings, keeping_settings
from unify_posttrain.workers.transport import reply
from unify_posttrain.workers.value_model import load_value_model


class FusionCritic(CriticUpdate, DataParallelPPOCritic):
    """DataParallelPPOCritic whose gradient does not depend on micro-batches, row order or ranks."""

    def __init__(self, config: Any, critic_module: torch.nn.Module, critic_optimizer: torch.optim.Optimizer) -> None:
        DataParallelPPOCritic.__init__(self, config, critic_module, critic_optimizer)
        precision = PrecisionType.to_dtype((config.model.fsdp_config.mixed_precision or {}).get("param_dtype", "bf16"))
        # verl enters autocast to bfloat16 around the forward pass, whatever precision FSDP was given.
        autocast = torch.autocast(self.device_name, dtype=precision, enabled=precision != torch.float32)
        critic_module.forward = autocast(critic_module.forward)

    def compute_values(self, data: DataProto) -> Tensor:
        """verl's, except that with dynamic batches all ranks run the same number of forward passes. Returns (B, T)."""

        def forward(part: DataProto) -> dict[str, Tensor]:
            return {"values": super(FusionCritic, self).compute_values(part)}

        return forward_in_step(forward, data, self.ulysses_sequence_parallel_size)["values"]

    def _forward(self, micro_batch: DataProto) -> Tensor:
        return self._forward_micro_batch({**micro_batch.batch, **micro_batch.non_tensor_batch})

    def _optimizer_step(self) -> Tensor:
        return DataParallelPPOCritic._optimizer_step(self)

    def update_critic(self, data: DataProto) -> dict[str, float]:
        self.critic_module.train()
        return super().update_critic(data)


class FusionCriticWorker(CriticWorker):
    """verl's critic worker with our critic in it. The name must not be `Worker`: verl finds its base class by that."""

    def __init__(self, config: Any) -> None:
        process_group.join()
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


@contextmanager
def _loading_with(loader: Callable[..., PreTrainedModel]) -> Iterator[None]:
    """Let verl's critic worker, which looks its loader up by name when it builds the model, find ours instead."""
    theirs = verl.utils.model.load_valuehead_model
    verl.utils.model.load_valuehead_model = loader
    try:
        yield
    finally:
        verl.utils.model.load_valuehead_model = theirs
