"""Dealing rows to ranks by their lengths, where there is more than one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verl import DataProto
from verl.trainer.ppo import ray_trainer


def balance_rows(trainer: Any, batch: DataProto, metrics: dict[str, Any]) -> None:
    """verl's `_balance_batch`: its order of rows and its metrics. For one rank it would search for the only way to deal the rows,
    tens of milliseconds per step.

    Args:
        trainer: a trainer of verl's.
        batch: reordered in place.
        metrics: gets `global_seqlen/*`.
    """
    theirs = ray_trainer.get_seqlen_balanced_partitions

    def partitions(lengths: Sequence[int], k_partitions: int, equal_size: bool) -> list[list[int]]:
        return [list(range(len(lengths)))] if k_partitions == 1 else theirs(lengths, k_partitions, equal_size)

    ray_trainer.get_seqlen_balanced_partitions = partitions
    try:
        trainer._balance_batch(batch, metrics=metrics)
    finally:
        ray_trainer.get_seqlen_balanced_partitions = theirs
