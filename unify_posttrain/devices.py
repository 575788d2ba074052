"""What a process may see of the machine's GPUs, and how it waits for its threads. Both before torch is imported; imports none."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from omegaconf import DictConfig, OmegaConf

VISIBLE = "CUDA_VISIBLE_DEVICES"
OPENMP = ("OMP_", "GOMP_", "KMP_")
NUM_THREADS = "OMP_NUM_THREADS"
NOBODYS = "-1"  # an index that no GPU has, where CUDA stops reading
IN_DRIVER = "hf"  # the engine whose worker can be in the driver: it gets its weights through Ray


def hide_gpus(config: DictConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """With `hide_gpus` (hardware=cpu) this process and all that it starts see no GPU; call it before anything asks CUDA for them.

    verl moves batches to any GPU that it sees, while on CPU the models stay where they are. Its ranks are declared to Ray as GPUs,
    and Ray refuses more of them than the variable names, so an empty one would not do.
    """
    if config.hide_gpus:
        environment[VISIBLE] = ",".join([NOBODYS] * config.trainer.n_gpus_per_node)


def set_openmp(variables: Mapping[str, str], environment: MutableMapping[str, str] = os.environ) -> None:
    """Set OpenMP's variables where the user has not; it reads them once, when torch is imported.

    Raises:
        ValueError: not OpenMP's.
    """
    for name, value in variables.items():
        if not name.startswith(OPENMP):
            raise ValueError(f"openmp.{name} is no variable of OpenMP; their names begin with {' or '.join(OPENMP)}")
        environment.setdefault(name, str(value))


def worker_in_driver(config: DictConfig) -> bool:
    """Whether the driver is to host the worker (`trainer.worker_in_driver`): the only one, without a GPU, of the transformers
    engine. A driver that has had one does not take another (`trainer.driver_worker`)."""
    trainer = config.trainer
    alone = trainer.nnodes * trainer.n_gpus_per_node == 1
    return bool(trainer.worker_in_driver and config.hide_gpus and alone and config.actor_rollout_ref.rollout.name == IN_DRIVER)


def variables_of(config: DictConfig) -> dict[str, str]:
    """The environment variables that `ray_kwargs` gives the processes of a run."""
    given = OmegaConf.select(config, "ray_kwargs.ray_init.runtime_env.env_vars") or {}
    return {name: str(value) for name, value in given.items()}


def openmp_of(config: DictConfig) -> dict[str, str]:
    """OpenMP's among `variables_of`."""
    return {name: value for name, value in variables_of(config).items() if name.startswith(OPENMP)}
