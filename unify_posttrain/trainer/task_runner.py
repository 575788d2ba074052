"""verl's task runner with our worker and trainer; `run` starts Ray and trains.

verl runs its task runner on a Ray actor. Ours runs in the process that the user started: one process less imports verl, what is
logged is not relayed, and the scheduler's signals reach the trainer (`runs.signals`).
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from ray._private import ray_constants, services
from verl.experimental.reward_loop import migrate_legacy_reward_impl
from verl.trainer.constants_ppo import get_ppo_ray_runtime_env
from verl.trainer.ppo.utils import Role, need_critic, need_reference_policy
from verl.utils import tracking
from verl.utils.config import validate_config
from verl.utils.dataset.rl_dataset import collate_fn
from verl.utils.device import auto_set_device

from unify_posttrain import cpu_compat
from unify_posttrain.backend.seams import ENGINE, adapted, base_task_runner, data_builders, tell_critic
from unify_posttrain.redaction import redacted, redacted_overrides, remember
from unify_posttrain.runs import listeners, state
from unify_posttrain.runs.beginning import begin
from unify_posttrain.runs.environment import environment
from unify_posttrain.runs.loggers import logger_folders
from unify_posttrain.runs.progress import show_progress
from unify_posttrain.runs.signals import StopRequest
from unify_posttrain.runs.trackers import goes_on_in_mlflow, note_runs, tracker_runs
from unify_posttrain.startup.data_checks import DataReport
from unify_posttrain.text import one_line
from unify_posttrain.trainer.run_inputs import RunInputs
from unify_posttrain.trainer.sessions import own_sessions

logger = logging.getLogger(__name__)

START_ATTEMPTS = 3
WANDB_PROXY = "WANDB_HTTPS_PROXY"  # its own variable for the setting `https_proxy`
RAY_TIMED_OUT = "timed out during startup"
# Ray remembers 100,000 calls, a few hundred MB after a thousand steps, for a dashboard that nobody has open.
# Every worker guards its logs as this process does.
SETUP_HOOK = "unify_posttrain.output.guard_logs"
RAY_REMEMBERED_CALLS = ("RAY_task_events_max_num_task_in_gcs", "10000")


class RedactedTracking(tracking.Tracking):
    """verl's, to which verl gives the whole configuration; trackers upload it, and some of them the command line as well."""

    def __init__(self, *args: Any, config: Any = None, **kwargs: Any) -> None:
        safe, proxy = redacted(config), ((config or {}).get("trainer") or {}).get("wandb_proxy")
        if proxy and safe["trainer"]["wandb_proxy"] != proxy:  # verl takes it out of what it uploads
            os.environ.setdefault(WANDB_PROXY, proxy)
            safe["trainer"]["wandb_proxy"] = None
        super().__init__(*args, config=safe, **kwargs)

    def log(self, data: Mapping[str, Any], *args: Any, **kwargs: Any) -> None:
        """Metrics bear the names of data sources, which verl's console logger prints as they are."""
        super().log({one_line(name): value for name, value in data.items()}, *args, **kwargs)


class RunTracking(RedactedTracking):
    """A run that is resumed goes on in its trackers."""

    def __init__(self, project_name: str, experiment_name: str, default_backend: str | list[str], config: dict[str, Any]) -> None:
        names = [default_backend] if isinstance(default_backend, str) else list(default_backend)
        # MLflow refuses parameters that differ from those of the first start, and verl would then go on without MLflow.
        apart = ["mlflow"] if "mlflow" in names and goes_on_in_mlflow() else []
        super().__init__(project_name, experiment_name, [name for name in names if name not in apart], config=config)
        if apart:
            self.logger |= RedactedTracking(project_name, experiment_name, apart).logger
        note_runs(self.logger, Path(config["trainer"]["run_dir"]))


def run(config: DictConfig, stop: StopRequest | None = None, checked: DataReport | None = None) -> None:
    """Train. The configuration must have passed `startup.checks`; it is resolved here, once, and saved in the run folder.

    Args:
        config: of the run, whose folder this process holds (`runs.lock`).
        stop: what listens to signals before and after training.
        checked: what the checks have read of the data.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    auto_set_device(config)
    config = migrate_legacy_reward_impl(config)
    OmegaConf.resolve(config)
    config = adapted(config)
    run_dir = Path(config.trainer.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    # Workers and the driver of a cluster do not share a working directory.
    for key in ("run_dir", "default_local_dir", "validation_data_dir", "rollout_data_dir"):
        if config.trainer.get(key):
            config.trainer[key] = str(Path(config.trainer[key]).resolve())
    lineage = begin(config)
    plain = OmegaConf.to_container(config)
    remember(plain)
    OmegaConf.save(OmegaConf.create(redacted(plain)), run_dir / "config.yaml")
    state.write_json(run_dir / "environment.json", environment())
    cpu_compat.install()
    tracking.Tracking = RunTracking  # verl's trainer looks it up when it begins
    try:
        with (
            logger_folders(config),
            tracker_runs(run_dir, lineage.run),
            own_cluster(config),
            redacted_arguments(),
            show_progress(config) as shown,
        ):
            start_ray(shown)
            if stop is not None:
                stop.listen_again()  # Ray has set a handler of its own for SIGTERM
            torch.set_num_threads(1)  # what Ray gives an actor of one CPU; more would spin beside the workers
            runner = FusionTaskRunner()
            runner.start_engine(shown)
            runner.run(shown, RunInputs.load(shown, checked))
            if shown.ray_kwargs.get("timeline_json_file"):
                ray.timeline(filename=shown.ray_kwargs.timeline_json_file)
    finally:
        ray.shutdown()  # a sweep goes on in this process, with a cluster of its own for every run


@contextmanager
def redacted_arguments() -> Iterator[None]:
    """The command line as trackers find it; Hydra has read the real one."""
    before = sys.argv[1:]
    sys.argv[1:] = redacted_overrides(before)
    try:
        yield
    finally:
        sys.argv[1:] = before


@contextmanager
def own_cluster(config: DictConfig) -> Iterator[None]:
    """What a cluster that this run starts itself may listen to (`runs.listeners`). One that is there is joined as it is."""
    given = config.ray_kwargs.get("ray_init", {})
    if joins_cluster(given):
        yield
        return
    listeners.ensure_token()
    loopback = listeners.stays_on_loopback(config.trainer.nnodes, given)
    before = ray_constants.ENABLE_RAY_CLUSTER
    try:
        with listeners.variables(listeners.loopback_variables() if loopback else {}):
            # Ray has read its variable when it was imported; the processes that it starts read it themselves.
            ray_constants.ENABLE_RAY_CLUSTER = before and os.environ.get(listeners.RAY_BEYOND_LOOPBACK) != "0"
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def joins_cluster(ray_init: Mapping[str, Any]) -> bool:
    """Whether `ray.init` would join a cluster: the user's, RAY_ADDRESS, or one that `ray start` left behind."""
    address = ray_init.get("address") or os.environ.get("RAY_ADDRESS")
    if address:
        return bool(address != "local")
    return services.find_bootstrap_address(ray_init.get("_temp_dir")) is not None


def start_ray(config: DictConfig) -> None:
    """What verl's `run_ppo` would do, which prints these settings, secrets included. Ray waits 30 s, not more, for its own node to
    come up; on a busy laptop that is not enough every time."""
    given = OmegaConf.to_container(config.ray_kwargs.get("ray_init", OmegaConf.create()), resolve=True)
    runtime_env = OmegaConf.merge(get_ppo_ray_runtime_env(), given.pop("runtime_env", None) or {})
    runtime_env.setdefault("worker_process_setup_hook", SETUP_HOOK)
    os.environ.setdefault(*RAY_REMEMBERED_CALLS)
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            with own_sessions():
                ray.init(**given, runtime_env=OmegaConf.to_container(runtime_env))
            return
        except Exception as error:
            if RAY_TIMED_OUT not in str(error) or attempt == START_ATTEMPTS:
                raise
            logger.warning("Ray did not start in time (the machine is busy); trying again")
            ray.shutdown()


class FusionTaskRunner(base_task_runner()):
    """Builds tokenizer, data, workers and trainer."""

    def add_workers(self, config: DictConfig) -> type:
        """The workers of the backend; verl's trainer starts those of them that the run needs. Returns the class of their group."""
        from verl.single_controller.ray import RayWorkerGroup

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
            self.role_worker_mapping[role] = ray.remote(worker)
            self.mapping[role] = "global_pool"
        if actor == Role.ActorRollout:
            self.add_ref_policy_worker(config, Actor)
        return RayWorkerGroup

    def start_engine(self, config: DictConfig) -> None:
        """Let servers begin, if they can do so before the workers whose weights they get; held until the trainer holds them."""
        if config.actor_rollout_ref.rollout.name == "hf":
            from unify_posttrain.rollout.hf_replica import start_servers

            self.servers = start_servers(config)

    def run(self, config: DictConfig, inputs: RunInputs) -> None:
        from unify_posttrain.rollout import register_engines
        from unify_posttrain.trainer.fusion_trainer import FusionTrainer
        from unify_posttrain.workers import reward_manager, reward_worker

        cpu_compat.install()
        register_engines()
        reward_worker.install()
        reward_manager.install()

        worker_group_cls = self.add_workers(config)
        self.add_reward_model_resource_pool(config)
        validate_config(config=config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
        trainer = FusionTrainer(
            config=config,
            tokenizer=inputs.tokenizer,
            processor=inputs.processor,
            role_worker_mapping=self.role_worker_mapping,
            resource_pool_manager=self.init_resource_pool_mgr(config),
            ray_worker_group_cls=worker_group_cls,
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
