"""Dynamic sampling (DAPO, arXiv 2503.14476 eq. 11): only groups whose rewards differ are trained, and prompts are drawn until there
are enough of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.trainer.mixed_batch import reward_field
from unify_posttrain.trainer.prompts import Generated, Prompts
from unify_posttrain.trainer.rewards import KEYS, aligned, unscored_rows
from unify_posttrain.workers.transport import Travelling

logger = logging.getLogger(__name__)


class DynamicSampling:
    """Settings of `algorithm.filter_groups`.

    Args:
        wanted: groups per training step.
        metric: reward field whose spread decides; None: the reward.
        max_batches: batches of prompts generated at most for one step.

    Raises:
        ValueError: fewer than one batch.
    """

    def __init__(self, wanted: int, metric: str | None, max_batches: int) -> None:
        if max_batches < 1:
            raise ValueError(f"algorithm.filter_groups.max_num_gen_batches={max_batches} must be at least 1")
        self.wanted, self.metric, self.max_batches = wanted, metric, max_batches

    @classmethod
    def from_node(cls, node: Mapping[str, Any] | None, wanted: int) -> DynamicSampling | None:
        """From `algorithm.filter_groups`, of the run or of a phase; None if it is not enabled."""
        if not node or not node["enable"]:
            return None
        return cls(wanted, node["metric"], node["max_num_gen_batches"])

    def replenish(self, first: Generated, more: Callable[[], Generated]) -> tuple[Generated, dict[str, float]]:
        """Draw and generate further prompts until enough groups have rewards that differ.

        Args:
            first: what the step began with.
            more: draws, generates and scores another batch of prompts.

        Returns:
            all of them, and `fusion/*` metrics.
        """
        parts = [first]
        spread: dict[str, bool] = {}
        while True:
            rollouts = parts[-1].rollouts
            scored = ~unscored_rows(rollouts)
            spread |= self.spread(rollouts.non_tensor_batch["uid"][scored], reward_field(rollouts, self.metric)[scored])
            if self.enough(spread, len(parts)):
                break
            parts.append(more())
            added = parts[-1].rollouts  # verl joins only batches that agree in their meta_info
            added.meta_info = {**first.rollouts.meta_info, KEYS: added.meta_info.get(KEYS, [])}
        rollouts = Travelling.concat(aligned([part.rollouts for part in parts])) if len(parts) > 1 else first.rollouts
        prompts = Prompts.concat([part.prompts for part in parts])
        return Generated(prompts, rollouts, partial(self.select, spread=spread)), {"fusion/gen_batches": float(len(parts))}

    def spread(self, uids: np.ndarray, values: np.ndarray) -> dict[str, bool]:
        """Whether the values of a group differ, by uid, in order of appearance."""
        seen: dict[str, set[float]] = {}
        for uid, value in zip(uids, values, strict=True):
            seen.setdefault(uid, set()).update([float(value)] if value == value else ())  # NaN: this row has no such field
        return {uid: len(different) > 1 for uid, different in seen.items()}

    def enough(self, spread: dict[str, bool], batches: int) -> bool:
        """Whether to stop drawing prompts; says so if it is for lack of groups."""
        found = sum(spread.values())
        if found >= self.wanted:
            return True
        if batches >= self.max_batches:
            logger.warning(
                "only %d of %d groups have rewards that differ after algorithm.filter_groups.max_num_gen_batches=%d batches; "
                "the step goes on with them",
                found,
                self.wanted,
                self.max_batches,
            )
            return True
        return False

    def select(self, plan: BatchPlan, spread: Mapping[str, bool]) -> BatchPlan:
        """The plan with only the first `wanted` groups that differ; the rows of the others are dropped."""
        kept = {uid for uid, _ in [item for item in spread.items() if item[1]][: self.wanted]}
        return plan.only(kept)
