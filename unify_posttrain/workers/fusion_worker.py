"""verl's hybrid worker with our actor in it, also without CUDA."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.fsdp_workers import AsyncActorRolloutRefWorker

from unify_posttrain import cpu_compat
from unify_posttrain.rollout import register_engines
from unify_posttrain.workers.fusion_actor import FusionActor


class PortableWorker(AsyncActorRolloutRefWorker):
    """verl's worker, able to run without CUDA and to find our engines; otherwise untouched."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        cpu_compat.install()
        register_engines()
        if not torch.cuda.is_available() and not dist.is_initialized():
            # verl would name the backend "cpu:gloo,cpu:nccl", which torch refuses.
            dist.init_process_group("gloo", rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
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
        if self._is_actor:
            # The checkpoint manager holds module and optimizer, not the actor, so replacing the actor is safe.
            self.actor = FusionActor(
                config=omega_conf_to_dataclass(self.config.actor),
                actor_module=self.actor_module_fsdp,
                actor_optimizer=self.actor_optimizer,
            )
