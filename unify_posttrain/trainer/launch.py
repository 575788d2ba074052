"""A run from its checked configuration: its folder and trackers, Ray, what it reads, and the trainer."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from omegaconf import DictConfig, OmegaConf
from verl.experimental.reward_loop import migrate_legacy_reward_impl
from verl.utils import tracking
from verl.utils.device import auto_set_device

from unify_posttrain import cpu_compat
from unify_posttrain.backend.seams import adapted
from unify_posttrain.redaction import redacted, redacted_overrides, remember
from unify_posttrain.rollout.hf_start import start_servers
from unify_posttrain.runs import state
from unify_posttrain.runs.beginning import begin
from unify_posttrain.runs.environment import environment
from unify_posttrain.runs.loggers import logger_folders
from unify_posttrain.runs.progress import show_progress
from unify_posttrain.runs.signals import StopRequest
from unify_posttrain.runs.trackers import goes_on_in_mlflow, note_runs, tracker_runs
from unify_posttrain.startup.data_checks import DataReport
from unify_posttrain.text import one_line
from unify_posttrain.trainer.cluster import own_cluster, running

WANDB_PROXY = "WANDB_HTTPS_PROXY"  # its own variable for the setting `https_proxy`


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
    with (
        logger_folders(config),
        tracker_runs(run_dir, lineage.run),
        own_cluster(config),
        redacted_arguments(),
        show_progress(config) as shown,
        running(shown, partial(start_servers, shown)) as started,
    ):
        from unify_posttrain.trainer.run_inputs import RunInputs
        from unify_posttrain.trainer.task_runner import FusionTaskRunner

        inputs, runner = RunInputs.load(shown, checked), FusionTaskRunner()
        runner.servers = started()  # Ray ends them when nobody holds them, until a replica does
        torch.set_num_threads(1)  # what Ray gives an actor of one CPU; more would spin beside the workers
        runner.run(shown, inputs)
        if shown.ray_kwargs.get("timeline_json_file"):
            ray.timeline(filename=shown.ray_kwargs.timeline_json_file)


@contextmanager
def redacted_arguments() -> Iterator[None]:
    """The command line as trackers find it; Hydra has read the real one."""
    before = sys.argv[1:]
    sys.argv[1:] = redacted_overrides(before)
    try:
        yield
    finally:
        sys.argv[1:] = before
