"""The batch of a step after the gate has decided, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from verl import DataProto

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.experience.plan import BatchPlan
from unify_posttrain.experience.ragged import token_counts
from unify_posttrain.experience.rows import DEMONSTRATION, PADDING, ROLLOUT
from unify_posttrain.trainer.prompts import Prompts

KIND_COLUMN = "fusion_kind"  # travels with the rows, so that every reordering keeps it right
KIND_NAMES = {ROLLOUT: "rollout", DEMONSTRATION: "demonstration", PADDING: "padding"}


@dataclass(frozen=True)
class MixedBatch:
    """What was decided for the prompts of a step, and the batch that came of it.

    Attributes:
        batch: the rows that are trained; mixed ones carry `KIND_COLUMN`.
        plan: one group per prompt, in the order of the prompts.
        scores: of all rollouts that were generated, by uid, also of those that the plan drops.
        dealt: the rows have been dealt to ranks and mini-batches; otherwise they are the rollouts in their own order.
        metrics: `fusion/*` of plan and rows.
    """

    batch: DataProto
    plan: BatchPlan
    scores: Mapping[str, np.ndarray]
    dealt: bool
    metrics: Mapping[str, float]

    def gate_record(self, prompts: Prompts, step: int) -> dict[str, Any]:
        """The step's line of `gate.jsonl`: [prompt, solved rollouts, zone] per group."""
        row_ids = prompts.rows.non_tensor_batch["row_id"]
        groups = [[int(row_id), group.successes, group.zone] for row_id, group in zip(row_ids, self.plan, strict=True)]
        return {"step": step, "groups": groups}


def kind_names(batch: DataProto) -> list[str] | None:
    """What each row of a mixed batch is, in words; None for an unmixed one."""
    kinds = batch.non_tensor_batch.get(KIND_COLUMN)
    return None if kinds is None else [KIND_NAMES[int(kind)] for kind in kinds]


def without_padding(batch: DataProto) -> DataProto:
    """The rows that count in statistics."""
    kinds = batch.non_tensor_batch.get(KIND_COLUMN)
    if kinds is None or not (kinds == PADDING).any() or (kinds == PADDING).all():
        return batch
    kept = np.flatnonzero(kinds != PADDING)
    lengths = batch.meta_info["global_token_num"]
    selected = batch.select_idxs(kept)
    selected.meta_info = {**batch.meta_info, "global_token_num": [lengths[row] for row in kept]}
    return selected


def note_lengths(batch: DataProto) -> None:
    """Put into `meta_info` what verl's workers and metrics read of rows in their final order: tokens, and those of images."""
    batch.meta_info["global_token_num"] = token_counts(batch.batch["attention_mask"]).tolist()
    batch.meta_info["images_seqlens"] = [
        length
        for inputs in batch.non_tensor_batch["multi_modal_inputs"]
        if "images_seqlens" in inputs
        for length in inputs["images_seqlens"].tolist()
    ]


def success_values(fusion: FusionConfig, rollouts: DataProto, rewards: list[float]) -> list[float] | np.ndarray:
    """(B,) what is compared with `fusion.success_threshold`: the rewards, or the field `fusion.success_key`.

    Raises:
        KeyError: the reward returns no such field.
    """
    key = fusion.success_key
    return rewards if key is None else _field(rollouts, key, "fusion.success_key")


def reward_field(rollouts: DataProto, name: str | None) -> np.ndarray:
    """(B,) a reward field by name, the reward itself for None.

    Raises:
        KeyError: the reward returns no such field.
    """
    if name is None:
        return rollouts.batch["rm_scores"].sum(dim=-1).numpy()
    return np.asarray(_field(rollouts, name, "algorithm.filter_groups.metric"))


def _field(rollouts: DataProto, name: str, setting: str) -> np.ndarray:
    if name not in rollouts.non_tensor_batch:
        known = list(rollouts.meta_info.get("reward_extra_keys", []))
        raise KeyError(f"{setting}={name!r}: the reward returns no such field; it returns {known}")
    return rollouts.non_tensor_batch[name]
