"""verl's task runner with our workers and trainer, in the process that the user started.

verl runs its task runner on a Ray actor. Here one process less imports verl, what is logged is not relayed, and the scheduler's
signals reach the trainer (`runs.signals`).
"""

from __future__ import annotations

import ray
from omegaconf import DictConfig
from verl.trainer.ppo.utils import Role, need_critic, need_reference_policy
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import collate_fn

from unify_posttrain import cpu_compat
from unify_posttrain.backend.seams import ENGINE, base_task_runner, data_builders, tell_critic
from unify_posttrain.trainer.driver_worker import HOST, Place
from unify_posttrain.trainer.run_inputs import RunInputs


class FusionTaskRunner(base_task_runner()):
    """Builds tokenizer, data, workers and trainer."""

    def add_workers(self, config: DictConfig, place: Place) -> None:
        """The workers of the backend; verl's trainer starts those of them that the run needs."""
        if config.trainer.backend == ENGINE:
            from unify_posttrain.workers.engine_worker import EngineCriticWorker as Critic
            from unify_posttrain.workers.engine_worker import EngineWorker as Actor

            # One worker has actor and reference; it builds the latter if its role says so.
            actor = Role.ActorRolloutRef if need_reference_policy(config) else Role.ActorRollout
        else:
            from unify_posttrain.workers.fusion_critic import FusionCriticWorker as Critic
            from unify_posttrain.workers.fusion_worker import FusionWorker as Actor

            actor = Role.ActorRollout
        for role, worker in ((actor, Actor), (Role.Critic, Critic)):
            self.role_worker_mapping[role] = ray.remote(place.prepared(worker))
            self.mapping[role] = "global_pool"
        if actor == Role.ActorRollout:
            self.add_ref_policy_worker(config, place.prepared(Actor))

    def run(self, config: DictConfig, inputs: RunInputs) -> None:
        with HOST.place(config) as place:
            self._train(config, inputs, place)

    def _train(self, config: DictConfig, inputs: RunInputs, place: Place) -> None:
        from unify_posttrain.rollout import register_engines
        from unify_posttrain.trainer.fusion_trainer import FusionTrainer
        from unify_posttrain.workers import reward_manager, reward_worker

        cpu_compat.install()
        register_engines()
        reward_worker.install()
        reward_manager.install()

        self.add_workers(config, place)
        self.add_reward_model_resource_pool(config)
        validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        trainer = FusionTrainer(
            config=config,
            tokenizer=inputs.tokenizer,
            processor=inputs.processor,
            role_worker_mapping=self.role_worker_mapping,
            resource_pool_manager=self.init_resource_pool_mgr(config),
            ray_worker_group_cls=place.group,
            train_dataset=inputs.train,
            val_dataset=inputs.val,
            collate_fn=collate_fn,
            train_sampler=data_builders()[1](config.data, inputs.train),
        )
        tell_critic(trainer, config.critic)
        try:
            trainer.init_workers()
            trainer.fit()
        finally:
            if trainer.progress_bar is not None:
                trainer.progress_bar.close()  # it would draw itself once more below the last line, which says how the run ended
            reward_manager.end(trainer)
