"""verl's task runner with our worker and trainer; `run` starts Ray and waits for the end."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import ray
from omegaconf import DictConfig, OmegaConf
from verl.experimental.reward_loop import migrate_legacy_reward_impl
from verl.trainer.main_ppo import TaskRunner, create_rl_dataset, create_rl_sampler, run_ppo
from verl.trainer.ppo.utils import Role, need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.device import auto_set_device

from unify_posttrain import cpu_compat

logger = logging.getLogger(__name__)

START_ATTEMPTS = 3
RAY_TIMED_OUT = "timed out during startup"

SECRET = re.compile(r"(api|access|private|secret)_?key|(^|_)token$|secret|password|credential", re.IGNORECASE)


def run(config: DictConfig) -> None:
    """Train. The configuration must have passed `trainer.checks`; it is resolved here, once, and saved in the run folder."""
    auto_set_device(config)
    config = migrate_legacy_reward_impl(config)
    OmegaConf.resolve(config)
    run_dir = Path(config.trainer.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    # Workers and the driver of a cluster do not share a working directory.
    for key in ("run_dir", "default_local_dir", "validation_data_dir", "rollout_data_dir"):
        if config.trainer.get(key):
            config.trainer[key] = str(Path(config.trainer[key]).resolve())
    OmegaConf.save(OmegaConf.create(redacted(OmegaConf.to_container(config))), run_dir / "config.yaml")
    cpu_compat.install()
    _run_when_ray_is_up(config)


def _run_when_ray_is_up(config: DictConfig) -> None:
    """verl's `run_ppo`. Ray waits 30 s, not more, for its own node to come up; on a busy laptop that is not enough every time."""
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            run_ppo(config, task_runner_class=ray.remote(num_cpus=1)(FusionTaskRunner))
            return
        except Exception as error:
            if ray.is_initialized() or RAY_TIMED_OUT not in str(error) or attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray did not start in time (the machine is busy); trying again")
            ray.shutdown()


def redacted(node: Any, name: str = "") -> Any:
    """A configuration for a file: values whose key speaks of a secret (API keys in Ray's env_vars, say) are replaced."""
    if isinstance(node, dict):
        return {key: redacted(value, str(key)) for key, value in node.items()}
    if isinstance(node, list):
        return [redacted(value, name) for value in node]
    return "<redacted>" if isinstance(node, str) and SECRET.search(name) else node


class FusionTaskRunner(TaskRunner):
    """Builds tokenizer, data, workers and trainer on a Ray actor."""

    def add_actor_rollout_worker(self, config: DictConfig) -> tuple[type, type]:
        from verl.single_controller.ray import RayWorkerGroup

        from unify_posttrain.workers.fusion_worker import FusionWorker

        self.role_worker_mapping[Role.ActorRollout] = ray.remote(FusionWorker)
        self.mapping[Role.ActorRollout] = "global_pool"
        return FusionWorker, RayWorkerGroup

    def add_critic_worker(self, config: DictConfig) -> None:
        from unify_posttrain.workers.fusion_critic import FusionCriticWorker

        self.role_worker_mapping[Role.Critic] = ray.remote(FusionCriticWorker)
        self.mapping[Role.Critic] = "global_pool"

    def run(self, config: DictConfig) -> None:
        from verl.utils.fs import copy_to_local

        from unify_posttrain.rollout import register_engines
        from unify_posttrain.trainer.fusion_trainer import FusionTrainer
        from unify_posttrain.trainer.tokenizers import load_processor, load_tokenizer

        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
        cpu_compat.install()
        register_engines()
        os.environ.setdefault("VERL_FILE_LOGGER_PATH", str(Path(config.trainer.run_dir) / "metrics.jsonl"))

        worker_cls, worker_group_cls = self.add_actor_rollout_worker(config)
        self.add_critic_worker(config)
        self.add_reward_model_resource_pool(config)
        self.add_ref_policy_worker(config, worker_cls)
        validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        model = config.actor_rollout_ref.model
        local_path = copy_to_local(model.path, use_shm=model.get("use_shm", False))
        tokenizer, processor = load_tokenizer(config, local_path), load_processor(config, local_path)

        def dataset(split: str) -> Any:
            return create_rl_dataset(
                config.data[f"{split}_files"],
                config.data,
                tokenizer,
                processor,
                is_train=split == "train",
                max_samples=config.data.get(f"{split}_max_samples", -1),
            )

        train_dataset = dataset("train")
        trainer = FusionTrainer(
            config=config,
            tokenizer=tokenizer,
            processor=processor,
            role_worker_mapping=self.role_worker_mapping,
            resource_pool_manager=self.init_resource_pool_mgr(config),
            ray_worker_group_cls=worker_group_cls,
            train_dataset=train_dataset,
            val_dataset=dataset("val"),
            collate_fn=collate_fn,
            train_sampler=create_rl_sampler(config.data, train_dataset),
        )
        trainer.init_workers()
        trainer.fit()
