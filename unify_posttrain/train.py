"""Compose, check, run.

    python -m unify_posttrain.train algorithm=hpt model=qwen2_5_math_7b hardware=node_8gpu trainer.switch_gate=0
    python -m unify_posttrain.train --cfg job algorithm=luffy      # print the configuration
    python -m unify_posttrain.train algorithm=hpt +dry_run=true    # run every start-up check, print the plan and what is missing

verl and torch are imported only after the configuration has been composed and checked.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir, expand, register_resolvers, run_command
from unify_posttrain.devices import hide_gpus, openmp_of, set_openmp, worker_in_driver

if TYPE_CHECKING:
    from unify_posttrain.startup.data_checks import DataReport

logger = logging.getLogger(__name__)

register_resolvers()


@hydra.main(config_path=str(conf_dir()), config_name="train", version_base=None)
def _main(config: DictConfig) -> None:
    try:
        expand(config, HydraConfig.get().overrides.task)
        hide_gpus(config)
        if worker_in_driver(config):
            set_openmp(openmp_of(config))
    except (ValueError, KeyError) as error:
        sys.exit(f"error: {error.args[0] if error.args else error}")
    _checked(config)


def _checked(config: DictConfig) -> None:
    """Check what is composed, then train or print the plan. What is imported here imports torch, which reads OpenMP's variables."""
    from unify_posttrain.runs.lock import FolderInUseError, folders_locked
    from unify_posttrain.runs.progress import check_outputs
    from unify_posttrain.runs.state import nothing_left
    from unify_posttrain.startup.checks import check_config
    from unify_posttrain.startup.data_checks import check_data, check_data_if_there
    from unify_posttrain.startup.dry_run import describe_run
    from unify_posttrain.startup.node_checks import check_nodes

    dry_run = bool(OmegaConf.select(config, "dry_run", default=False))
    try:
        check_config(config)
        check_nodes(config)
        check_outputs(config)
        data, missing = check_data_if_there(config) if dry_run else (check_data(config), [])
    except (ValueError, KeyError, FileNotFoundError) as error:
        # One line for a user's mistake; the traceback of a check says nothing that the message does not.
        logger.debug("start-up check failed", exc_info=True)
        sys.exit(f"error: {error.args[0] if error.args else error}")
    if dry_run:
        sys.stdout.write(describe_run(config, data, missing))
        return
    try:
        with folders_locked(config):
            # What the checks have read of the folder, another run may have changed until it was locked.
            finished = nothing_left(config, config.trainer.total_training_steps)
            if finished:  # said before Ray starts, which takes a minute
                logger.warning(finished)
                return
            _run(config, data)
    except FolderInUseError as error:
        sys.exit(f"error: {error}")


def _run(config: DictConfig, checked: DataReport | None) -> None:
    """Train; end with the exit code that a scheduler reads, and a last line that says what to do."""
    from unify_posttrain.runs.failures import explain, stop_request
    from unify_posttrain.runs.signals import PreemptedError

    try:
        with stop_request(config).leaving() as stop:
            from unify_posttrain.trainer.launch import run

            run(config, stop, checked)
    except PreemptedError as stopped:
        logger.warning(stopped)
        sys.exit(stopped.exit_code)
    except Exception as error:
        logger.exception("the run failed")
        sys.exit(f"error: {explain(error, config)}")


def main() -> None:
    """Entry point of `unify-train`."""
    run_command(_main)


if __name__ == "__main__":
    main()
