"""verl's engine worker with the surface of its FSDP worker: DataProto in, DataProto out, the same calls, the same metrics."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from verl import DataProto
from verl.single_controller.base.decorator import Dispatch, make_nd_compute_dataproto_dispatch_fn, register
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_torch_device
from verl.utils.profiler import DistProfiler
from verl.workers.config.optimizer import build_optimizer
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

from unify_posttrain.backend.seams import critic_parts
from unify_posttrain.rollout import register_engines
from unify_posttrain.workers import engine as engines
from unify_posttrain.workers import process_group
from unify_posttrain.workers.engine_actor import EngineActor, EngineCritic, EnginePolicy
from unify_posttrain.workers.finite import check_resumed, check_weights
from unify_posttrain.workers.optimizers import (
    HeldRate,
    detach_settings,
    keeping_settings,
    load_moments,
    make_schedule,
    optim_of,
    plain_schedule,
    restart,
    save_moments,
)
from unify_posttrain.workers.transport import reply

GIB = 1024**3


def _prepare() -> None:
    register_engines()
    engines.register()
    process_group.join()


class EngineWorker(ActorRolloutRefWorker):
    """Actor, rollout client and reference of one rank."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        _prepare()
        super().__init__(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        config = self.config
        for node in (config.actor, config.ref):
            engines.settle(node, config.actor.strategy)
        # verl's takes these away from the reference's node while it builds it
        self.reading = {"actor": _reading(config.rollout), "ref": _reading(config.ref)}
        super().init_model()
        chunk, where = config.actor.fusion.logits_chunk, f"actor_rollout_ref.model.path={config.model.path}"
        self.replay_optimizer: torch.optim.Optimizer | None = None
        if self.ref is not None:
            check_weights(self.ref.engine.module, where)
            self.reference = EnginePolicy(self.ref.engine, chunk)
        if self.actor is not None:
            check_weights(self.engine.module, where)
            self.policy = EngineActor(omega_conf_to_dataclass(config.actor), self.engine)
            if len(self.policy.phases) == 1 and self.policy.algorithm.fusion.lr_schedule is None:
                self._begin(0, config.actor.optim.total_training_steps)
            replay = self.policy.algorithm.replay_step
            if replay is not None and replay.separate:
                optim = omega_conf_to_dataclass({**config.actor.optim, "lr": replay.lr})
                self.replay_optimizer = build_optimizer(self.engine.module.parameters(), optim)
        # verl collects garbage several times a step; imports and the model live as long as the process: searched no more.
        gc.collect()
        gc.freeze()

    @property
    def engine(self) -> Any:
        """Of the actor."""
        return self.actor.engine

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def start_phase(self, index: int, total_steps: int) -> None:
        """Begin a phase of the run: its terms, a fresh optimizer, and its learning-rate schedule over `total_steps`."""
        self.policy.start_phase(index)
        restart(self.engine.optimizer, optim_of(self.policy.phases[index], self.config.actor.optim))
        self._begin(index, total_steps)

    def _begin(self, index: int, total_steps: int) -> None:
        """The learning-rate schedule of a phase: verl's engine has one of its own, with other rules for its warm-up."""
        phase = self.policy.phases[index]
        schedule = make_schedule(self.engine.optimizer, phase, optim_of(phase, self.config.actor.optim), total_steps)
        self.engine.lr_scheduler = self.engine.checkpoint_manager.lr_scheduler = schedule

    # Forward passes

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="blue", role="actor_compute_log_prob")
    def compute_log_prob(self, data: DataProto) -> DataProto:
        self._tell(data, "actor")
        outputs = self.policy.compute_log_prob(data, calculate_entropy=True)
        tensors = {"old_log_probs": outputs["log_probs"], "entropys": outputs["entropys"]}
        return reply(DataProto.from_dict(tensors, meta_info={"temperature": self.config.rollout.temperature}), data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="ref"))
    @DistProfiler.annotate(color="olive", role="ref_compute_log_prob")
    def compute_ref_log_prob(self, data: DataProto) -> DataProto:
        self._tell(data, "ref")
        return reply(DataProto.from_dict({"ref_log_prob": self.reference.compute_log_prob(data)["log_probs"]}), data)

    def _tell(self, data: DataProto, role: str) -> None:
        data.meta_info.update(self.reading[role], temperature=self.config.rollout.temperature)
        data.meta_info.setdefault("pad_token_id", (self.actor or self.ref).model_config.tokenizer.pad_token_id)

    # Updates

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    @DistProfiler.annotate(color="red", role="actor_update")
    def update_actor(self, data: DataProto) -> DataProto:
        data.meta_info.setdefault("pad_token_id", self.actor.model_config.tokenizer.pad_token_id)
        began = time.perf_counter()
        metrics = self.policy.update_policy(data)
        seconds = time.perf_counter() - began
        more = {"images_seqlens": data.meta_info["images_seqlens"]} if "images_seqlens" in data.meta_info else {}
        metrics["perf/mfu/actor"] = self.config.actor.ppo_epochs * _mfu(self.actor, data, seconds, **more)
        device = get_torch_device()
        metrics["perf/max_memory_allocated_gb"] = device.max_memory_allocated() / GIB
        metrics["perf/max_memory_reserved_gb"] = device.max_memory_reserved() / GIB
        metrics["perf/cpu_memory_used_gb"] = psutil.virtual_memory().used / GIB
        metrics["actor/lr"] = float(self.engine.lr_scheduler.get_last_lr()[0])
        self.engine.lr_scheduler.step()
        return DataProto(meta_info={"metrics": metrics})

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="actor"))
    def update_replay(self, data: DataProto) -> DataProto:
        """A fine-tuning step on replayed demonstrations, outside of the learning-rate schedule."""
        replay = self.policy.algorithm.replay_step
        data.meta_info |= {"epochs": replay.epochs, "grad_clip": replay.grad_clip}
        with self._at_replay_rate(replay.lr):
            return self.update_actor(data)

    @contextmanager
    def _at_replay_rate(self, lr: float) -> Iterator[None]:
        """The separate optimizer in place of RL's, or RL's at another learning rate; its schedule stands still. The engine moves
        the one that it holds to the device and away."""
        engine = self.engine
        optimizer, scheduler = engine.optimizer, engine.lr_scheduler
        rates = [group["lr"] for group in optimizer.param_groups]
        if self.replay_optimizer is not None:
            engine.optimizer = self.replay_optimizer
        else:
            for group in optimizer.param_groups:
                group["lr"] = lr
        engine.lr_scheduler = HeldRate(lr)
        try:
            yield
        finally:
            engine.optimizer, engine.lr_scheduler = optimizer, scheduler
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    # Checkpoints: verl's, which are those of the other backend, and the second optimizer beside them.

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        detach_settings(self.engine.optimizer)
        super().save_checkpoint(local_path, *args, **kwargs)
        if self.replay_optimizer is not None:
            save_moments(self.replay_optimizer, self._moments(local_path))

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        with keeping_settings(self.engine.optimizer, self.engine.lr_scheduler):
            super().load_checkpoint(local_path, *args, **kwargs)
        if local_path is None:
            return
        check_resumed(self.engine.module, self.engine.optimizer, local_path)
        moments = self._moments(local_path)
        if self.replay_optimizer is not None and moments.exists():
            load_moments(self.replay_optimizer, moments)
            check_resumed(self.engine.module, self.replay_optimizer, local_path, moments)

    @staticmethod
    def _moments(local_path: str) -> Path:
        return Path(local_path) / f"replay_optim_world_size_{dist.get_world_size()}_rank_{dist.get_rank()}.safetensors"


class EngineCriticWorker(TrainingWorker):
    """The critic of one rank, with the calls of verl's FSDP worker."""

    def __init__(self, config: Any) -> None:
        _prepare()
        self.settings, parts = critic_parts(config)
        super().__init__(parts)
        self.engine.seed = self.settings.data_loader_seed
        # From prompts of all ranks to rows of this one, as verl's FSDP worker does.
        self.settings = copy(self.settings)
        rows = self.settings.ppo_mini_batch_size * self.settings.rollout_n
        self.settings.ppo_mini_batch_size = rows // self.engine.get_data_parallel_size()
        rank, collects = self.engine.get_data_parallel_rank(), self.engine.is_mp_src_rank_with_outputs()
        self._register_dispatch_collect_info(mesh_name="critic", dp_rank=rank, is_collect=collects)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        self.reset()

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        super().reset()
        optim = self.settings.optim
        schedule = plain_schedule(self.engine.optimizer, optim, optim.total_training_steps)  # verl's engine has other rules
        self.engine.lr_scheduler = self.engine.checkpoint_manager.lr_scheduler = schedule
        check_weights(self.engine.module, f"critic.model.path={self.settings.model.path}")
        self.critic = EngineCritic(self.settings, self.engine)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="critic"))
    @DistProfiler.annotate(color="cyan", role="compute_values")
    def compute_values(self, data: DataProto) -> DataProto:
        config = self.settings
        data.meta_info.update(
            micro_batch_size=config.forward_micro_batch_size_per_gpu,
            max_token_len=config.forward_max_token_len_per_gpu,
            use_dynamic_bsz=config.use_dynamic_bsz,
        )
        return reply(DataProto.from_dict({"values": self.critic.compute_values(data)}), data)

    @register(dispatch_mode=make_nd_compute_dataproto_dispatch_fn(mesh_name="critic"))
    @DistProfiler.annotate(color="pink", role="critic_update")
    def update_critic(self, data: DataProto) -> DataProto:
        began = time.perf_counter()
        metrics = self.critic.update_critic(data)
        metrics["perf/mfu/critic"] = self.settings.ppo_epochs * _mfu(self, data, time.perf_counter() - began)
        metrics["critic/lr"] = float(self.engine.lr_scheduler.get_last_lr()[0])
        self.engine.lr_scheduler.step()
        return DataProto(meta_info={"metrics": metrics})

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        detach_settings(self.engine.optimizer)
        super().save_checkpoint(*args, **kwargs)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        with keeping_settings(self.engine.optimizer, self.engine.lr_scheduler):
            super().load_checkpoint(local_path, *args, **kwargs)
        if local_path is not None:
            check_resumed(self.engine.module, self.engine.optimizer, local_path)


def _reading(node: Any) -> dict[str, Any]:
    """How a log-prob stage cuts its rows."""
    return {
        "micro_batch_size": node.log_prob_micro_batch_size_per_gpu,
        "max_token_len": node.log_prob_max_token_len_per_gpu,
        "use_dynamic_bsz": node.log_prob_use_dynamic_bsz,
    }


def _mfu(worker: Any, data: DataProto, seconds: float, **more: Any) -> float:
    """Share of the accelerator's peak that an update reached."""
    tokens = data.meta_info["global_token_num"]
    done, promised = worker.flops_counter.estimate_flops(tokens, seconds, **more)
    return done / promised / dist.get_world_size()
