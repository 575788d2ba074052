"""What a training step has decided so far: made when it begins, filled by its stages, gone with it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.trainer.mixed_batch import MixedBatch
from unify_posttrain.trainer.prompts import Prompts


@dataclass
class Step:
    """State of one step.

    Attributes:
        number: 1-based.
        algorithm: that of the phase which the step belongs to.
        mini_batches: optimizer steps that it takes.
        began: of `time.perf_counter`.
        prompts: with demonstrations and response prefixes; after dynamic sampling all that were drawn.
        mixed: what the gate decided, and the batch made of it.
        dropped: rollouts that no row was made of, for the dump.
        trained: the batch after its update.
    """

    number: int
    algorithm: Algorithm
    mini_batches: int
    began: float = field(default_factory=time.perf_counter)
    prompts: Prompts | None = None
    mixed: MixedBatch | None = None
    dropped: DataProto | None = None
    trained: DataProto | None = None

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began

    @property
    def term_scales(self) -> dict[str, float]:
        """Factors of terms, for the actor."""
        return dict(self.algorithm.scales(self.mixed.plan, self.number))
