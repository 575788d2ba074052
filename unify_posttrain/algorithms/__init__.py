"""The algorithms by name. Each is one module here, one file in `conf/algorithm/`, and its test case."""

from __future__ import annotations

from typing import Any

from unify_posttrain.algorithms.base import Algorithm, Phase
from unify_posttrain.algorithms.chord import CHORD
from unify_posttrain.algorithms.dapo import DAPO
from unify_posttrain.algorithms.dft import DFT
from unify_posttrain.algorithms.dr_grpo import DrGRPO
from unify_posttrain.algorithms.grpo import GRPO
from unify_posttrain.algorithms.hpt import HPT
from unify_posttrain.algorithms.luffy import LUFFY
from unify_posttrain.algorithms.online_sft import OnlineSFT
from unify_posttrain.algorithms.ppo import PPO
from unify_posttrain.algorithms.prefix_rft import PrefixRFT
from unify_posttrain.algorithms.psft import PSFT
from unify_posttrain.algorithms.relift import ReLIFT
from unify_posttrain.algorithms.rl_with_sft_loss import RLWithSFTLoss
from unify_posttrain.algorithms.settings import FusionConfig, Settings
from unify_posttrain.algorithms.sft import SFT
from unify_posttrain.algorithms.sft_then_rl import SFTThenRL
from unify_posttrain.algorithms.srft import SRFT
from unify_posttrain.algorithms.uft import UFT

METHODS: tuple[type[Algorithm], ...] = (
    GRPO, DrGRPO, DAPO, PPO, SFT, DFT, PSFT, SFTThenRL, RLWithSFTLoss,
    HPT, LUFFY, PrefixRFT, ReLIFT, SRFT, UFT, OnlineSFT, CHORD,
)  # fmt: skip
# Methods whose published runs have another balance of their terms than the papers' equations: the same class, another conf file.
RELEASED = (HPT, LUFFY, ReLIFT, SRFT, RLWithSFTLoss, DrGRPO, UFT, CHORD)
# Settings of published experiments that are not the method's own paper's.
PRESETS = (PPO.preset("heals", "PPO with the settings of arXiv 2509.12235, over the turns of an environment."),)
ALGORITHMS: dict[str, type[Algorithm]] = {cls.name: cls for cls in (*METHODS, *(each.released() for each in RELEASED), *PRESETS)}


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


__all__ = ["ALGORITHMS", "METHODS", "PRESETS", "RELEASED", "Algorithm", "FusionConfig", "Phase", "Settings", "build_algorithm"]
