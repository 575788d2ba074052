"""Imported by the workers of a run (actor_rollout_ref.model.external_lib): makes one rank compute NaN once.

UNIFY_TEST_NAN=RANK:UPDATE says which rank, and in which update of this process (from 1).
"""

from __future__ import annotations

import os
from typing import Any

import torch.distributed as dist

from unify_posttrain.workers.fusion_actor import FusionActor

RANK, UPDATE = (int(part) for part in os.environ["UNIFY_TEST_NAN"].split(":"))
updates = 0
update_policy, forward = FusionActor.update_policy, FusionActor._forward_micro_batch


def counted_update(self: FusionActor, data: Any) -> dict[str, float]:
    global updates
    updates += 1
    return update_policy(self, data)


def broken_forward(self: FusionActor, *args: Any, **kwargs: Any) -> dict[str, Any]:
    outputs = forward(self, *args, **kwargs)
    if updates == UPDATE and dist.get_rank() == RANK:
        outputs["log_probs"] = outputs["log_probs"] * float("nan")
    return outputs


FusionActor.update_policy, FusionActor._forward_micro_batch = counted_update, broken_forward
