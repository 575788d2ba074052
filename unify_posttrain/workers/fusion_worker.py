"""verl's hybrid worker with our actor in it, also without CUDA."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from verl import DataProto
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.config.optimizer import build_optimizer
from verl.workers.fsdp_workers import AsyncActorRolloutRefWorker

from unify_posttrain.rollout import register_engines
from unify_posttrain.workers import process_group
from unify_posttrain.workers.finite import check_resumed, check_weights
from unify_posttrain.workers.forward import ChunkedForward
from unify_posttrain.workers.fusion_actor import FusionActor
from unify_posttrain.workers.optimizers import (
    HeldRate,
    detach_settings,
    keeping_settings,
    load_moments,
    make_schedule,
    optim_of,
    restart,
    save_moments,
)
from unify_posttrain.workers.transport import reply


class PortableWorker(AsyncActorRolloutRefWorker):
    """verl's worker, able to run without CUDA and to find our engines; otherwise untouched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        register_engines()
        process_group.join()
        super().__init__(*args, **kwargs)

    def _build_model_optimizer(self, *args: Any, role: str = "actor", **kwargs: Any) -> Any:
        # A FSDP2 reference offloads to pinned memory, which needs CUDA; built as an actor without optimizer it does not.
        if role == "ref" and not torch.cuda.is_available():
            role = "actor"
        return super()._build_model_optimizer(*args, role=role, **kwargs)


class FusionWorker(PortableWorker):
    """Actor, rollout client and reference of one rank. The name must not be `Worker`: verl finds its base class by that."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        for module in ([self.actor_module_fsdp] if self._is_actor else []) + ([self.ref_module_fsdp] if self._is_ref else []):
            check_weights(module, f"actor_rollout_ref.model.path={self.config.model.path}")
        self.replay_optimizer: torch.optim.Optimizer | None = None
        if self._is_actor:
            # The checkpoint manager holds module and optimizer, not the actor, so replacing the actor is safe.
            self.actor = FusionActor(
                config=omega_conf_to_dataclass(self.config.actor),
                actor_module=self.actor_module_fsdp,
                actor_optimizer=self.actor_optimizer,
            )
            replay = self.actor.algorithm.replay_step
            if replay is not None and replay.separate:
                optim = omega_conf_to_dataclass({**self.config.actor.optim, "lr": replay.lr})
                self.replay_optimizer = build_optimizer(self.actor_module_fsdp.parameters(), optim)
        fusion = self.config.actor.fusion
        saving = (fusion.logits_chunk, fusion.trim_padding, fusion.share_prompts)
        if self._is_ref and saving != (None, False, False):  # verl gives the reference a worker of its own, which has no actor
            self.ref_policy = ChunkedForward(self.config.ref, self.ref_module_fsdp, None, *saving)
        # verl collects garbage several times a step; imports and the model live as long as the process: searched no more.
        gc.collect()
        gc.freeze()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_phase(self, index: int, total_steps: int) -> None:
        """Begin a phase of the run: its terms, a fresh optimizer, and its learning-rate schedule over `total_steps`."""
        phase = self.actor.phases[index]
        self.actor.start_phase(index)
        optim = optim_of(phase, self.config.actor.optim)
        restart(self.actor_optimizer, optim)
        self.actor_lr_scheduler = make_schedule(self.actor_optimizer, phase, optim, total_steps)
        self.checkpoint_manager.lr_scheduler = self.actor_lr_scheduler

    # What goes back to the driver is packed as what came from it.

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_log_prob(self, data: DataProto) -> DataProto:
        return reply(super().compute_log_prob(data), data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def compute_ref_log_prob(self, data: DataProto) -> DataProto:
        return reply(super().compute_ref_log_prob(data), data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_replay(self, data: DataProto) -> DataProto:
        """A fine-tuning step on replayed demonstrations, outside of the learning-rate schedule."""
        replay = self.actor.algorithm.replay_step
        data.meta_info |= {"epochs": replay.epochs, "grad_clip": replay.grad_clip}
        with self._at_replay_rate(replay.lr):
            return super().update_actor(data)

    @contextmanager
    def _at_replay_rate(self, lr: float) -> Iterator[None]:
        """The separate optimizer in place of RL's, or RL's at another learning rate; its schedule stands still."""
        optimizer, scheduler = self.actor_optimizer, self.actor_lr_scheduler
        rates = [group["lr"] for group in optimizer.param_groups]
        if self.replay_optimizer is not None:
            self.actor_optimizer = self.actor.actor_optimizer = self.replay_optimizer
        else:
            for group in optimizer.param_groups:
                group["lr"] = lr
        self.actor_lr_scheduler = HeldRate(lr)
        try:
            yield
        finally:
            self.actor_optimizer = self.actor.actor_optimizer = optimizer
            self.actor_lr_scheduler = scheduler
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    # Checkpoints: verl's, and the second optimizer beside them.

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        if self._is_actor:
            detach_settings(self.actor_optimizer)
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.replay_optimizer is not None:
            save_moments(self.replay_optimizer, self._moments(local_path))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        with keeping_settings(self.actor_optimizer, self.actor_lr_scheduler):
            super().load_checkpoint(local_path, *args, **kwargs)
        if local_path is not None and self._is_actor:
            check_resumed(self.actor_module_fsdp, self.actor_optimizer, local_path)
        if self.replay_optimizer is not None and local_path is not None and self._moments(local_path).exists():
            load_moments(self.replay_optimizer, self._moments(local_path))
            check_resumed(self.actor_module_fsdp, self.replay_optimizer, local_path, self._moments(local_path))

    @staticmethod
    def _moments(local_path: str) -> Path:
        return Path(local_path) / f"replay_optim_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.safetensors"
