"""Plain verl on CPU: its own task runner, trainer, worker loop and actor, on our configuration of GRPO.

Nothing of ours takes part but what verl lacks to run without CUDA: the rollout engine, the additions to torch.cpu, and seeds per
rollout (so that both runs sample the same tokens). Run as a command by test_verl_parity.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import ray
from omegaconf import OmegaConf, open_dict
from verl.experimental.agent_loop.agent_loop import AgentLoopManager
from verl.experimental.reward_loop import migrate_legacy_reward_impl
from verl.protocol import DataProto
from verl.trainer.main_ppo import TaskRunner, run_ppo
from verl.trainer.ppo.utils import Role

from unify_posttrain import cpu_compat
from unify_posttrain.config import compose_config
from unify_posttrain.rollout import register_engines
from unify_posttrain.rollout.agent_loop import SEED_COLUMN, rollout_seeds


class SeededManager(AgentLoopManager):
    """verl's manager, adding the seed column that our trainer adds."""

    def generate_sequences(self, prompts: DataProto) -> DataProto:
        seeds = rollout_seeds(0, prompts.meta_info["global_steps"], prompts.non_tensor_batch["row_id"])
        prompts.non_tensor_batch[SEED_COLUMN] = seeds
        return super().generate_sequences(prompts)


class PlainRunner(TaskRunner):
    """verl's task runner with verl's worker made portable; trainer and actor are verl's."""

    def add_actor_rollout_worker(self, config):
        from verl.single_controller.ray import RayWorkerGroup

        from unify_posttrain.workers.fusion_worker import PortableWorker

        self.role_worker_mapping[Role.ActorRollout] = ray.remote(PortableWorker)
        self.mapping[Role.ActorRollout] = "global_pool"
        return PortableWorker, RayWorkerGroup

    def run(self, config):
        cpu_compat.install()
        register_engines()
        os.environ["VERL_FILE_LOGGER_PATH"] = str(Path(config.trainer.run_dir) / "metrics.jsonl")
        super().run(config)


def main(overrides: list[str]) -> None:
    config = compose_config(overrides)
    with open_dict(config):
        config.actor_rollout_ref.actor._target_ = "verl.workers.config.FSDPActorConfig"
        del config.actor_rollout_ref.actor.fusion
        config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = f"{__name__}.SeededManager"
    OmegaConf.resolve(config)
    Path(config.trainer.run_dir).mkdir(parents=True, exist_ok=True)
    cpu_compat.install()
    run_ppo(migrate_legacy_reward_impl(config), task_runner_class=ray.remote(num_cpus=1)(PlainRunner))


if __name__ == "__main__":
    # Ray pickles classes by reference: workers must import this module under the name it has here.
    sys.path.insert(0, str(Path(__file__).resolve().parent))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    import plain_verl

    plain_verl.main(sys.argv[1:])
