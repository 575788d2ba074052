"""What a process may see of the machine's GPUs, and how it waits for its threads. Both before torch is imported; imports none."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

from omegaconf import DictConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
OPENMP = ("OMP_", "GOMP_", "KMP_")
NOBODYS = "-1"  # an index that no GPU has, where CUDA stops reading


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
