"""The algorithms by name. Each is one module here, one file in `conf/algorithm/`, and its tests."""

from __future__ import annotations

from typing import Any

from unify_posttrain.algorithms.base import Algorithm
from unify_posttrain.algorithms.dr_grpo import DrGRPO
from unify_posttrain.algorithms.grpo import GRPO
from unify_posttrain.algorithms.hpt import HPT
from unify_posttrain.algorithms.luffy import LUFFY
from unify_posttrain.algorithms.settings import FusionConfig, Settings
from unify_posttrain.algorithms.sft import SFT

ALGORITHMS: dict[str, type[Algorithm]] = {cls.name: cls for cls in (GRPO, DrGRPO, SFT, HPT, LUFFY)}


def build_algorithm(actor: Any) -> Algorithm:
    """The algorithm that `actor_rollout_ref.actor` (mapping or dataclass, with its `fusion` node) names.

    Raises:
        ValueError: unknown algorithm (lists the known ones), or contradictory settings.
    """
    settings = Settings.from_actor(actor)
    name = settings.fusion.algorithm
    if name not in ALGORITHMS:
        raise ValueError(f"algorithm={name!r} is unknown; choose one of {', '.join(sorted(ALGORITHMS))}")
    return ALGORITHMS[name](settings)


__all__ = ["ALGORITHMS", "Algorithm", "FusionConfig", "Settings", "build_algorithm"]
