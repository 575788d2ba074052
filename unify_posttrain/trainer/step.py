"""What a training step has decided so far: made when it begins, filled by its stages, gone with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from verl import DataProto

from unify_posttrain.algorithms import Algorithm, Phase
from unify_posttrain.trainer.dynamic_sampling import DynamicSampling
from unify_posttrain.trainer.mixed_batch import MixedBatch
from unify_posttrain.trainer.prompts import Prompts


@dataclass
class Step:
    """State of one step.

    Attributes:
        number: 1-based.
        algorithm: that of the phase which the step belongs to.
        mini_batches: optimizer steps that it takes.
        sampling: how further prompts are drawn; None: they are not.
        began: of `time.perf_counter`.
        prompts: with demonstrations and response prefixes; after dynamic sampling all that were drawn.
        mixed: what the gate decided, and the batch made of it.
        dropped: rollouts that no row was made of, for the dump.
        trained: the batch after its update.
    """

    number: int
    algorithm: Algorithm
    mini_batches: int
    sampling: DynamicSampling | None = None
    began: float = field(default_factory=time.perf_counter)
    prompts: Prompts | None = None
    mixed: MixedBatch | None = None
    dropped: DataProto | None = None
    trained: DataProto | None = None

    @classmethod
    def begin(cls, number: int, phase: Phase, config: Any) -> Step:
        """A step of a phase, with the run's settings where the phase has none of its own."""
        batch, actor = config.data.train_batch_size, config.actor_rollout_ref.actor
        filtered = phase.filter_groups or config.algorithm.get("filter_groups")
        mini_batches = phase.mini_batches or batch // actor.ppo_mini_batch_size
        return cls(number, phase.algorithm, mini_batches, DynamicSampling.from_node(filtered, batch))

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began

    @property
    def term_scales(self) -> dict[str, float]:
        """Factors of terms, for the actor."""
        return dict(self.algorithm.scales(self.mixed.plan, self.number))
