"""The processes of a worker group, as the estimator asks for them."""

from __future__ import annotations

from functools import partial

import torch.distributed as dist
from verl.utils.device import get_device_id

from unify_posttrain.objective.update import Ranks


def worker_ranks(sequence_parallel_size: int) -> Ranks:
    """All processes of the default group; `sequence_parallel_size` of them hold the same rows. One alone asks nobody."""
    if dist.get_world_size() == 1:
        return Ranks(device=get_device_id())
    highest = partial(dist.all_reduce, op=dist.ReduceOp.MAX)
    return Ranks(dist.all_reduce, dist.get_world_size(), sequence_parallel_size, get_device_id(), highest)
