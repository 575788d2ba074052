"""Which GPUs of the machine a run may see: all, or none of them. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from omegaconf import DictConfig

VISIBLE = "CUDA_VISIBLE_DEVICES"
NOBODYS = "-1"  # an index that no GPU has, where CUDA stops reading


def hide_gpus(config: DictConfig, environment: MutableMapping[str, str] = os.environ) -> None:
    """With `hide_gpus` (hardware=cpu) this process and all that it starts see no GPU; call it before anything asks CUDA for them.

    verl moves batches to any GPU that it sees, while on CPU the models stay where they are. Its ranks are declared to Ray as GPUs,
    and Ray refuses more of them than the variable names, so an empty one would not do.
    """
    if config.hide_gpus:
        environment[VISIBLE] = ",".join([NOBODYS] * config.trainer.n_gpus_per_node)
