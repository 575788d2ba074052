"""The actor's configuration as verl instantiates it: FSDPActorConfig plus the `fusion` node, strict in both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from verl.workers.config import FSDPActorConfig

from unify_posttrain.algorithms.settings import FusionConfig


@dataclass
class FusionActorConfig(FSDPActorConfig):
    """`actor_rollout_ref.actor` with `_target_` set to this class. `fusion` arrives as a mapping and becomes `FusionConfig`."""

    _mutable_fields = FSDPActorConfig._mutable_fields | {"fusion"}

    fusion: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.fusion, FusionConfig):
            self.fusion = FusionConfig.from_node(self.fusion)
