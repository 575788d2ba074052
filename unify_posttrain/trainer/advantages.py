"""Advantages of a mixed batch that verl's estimators cannot know, put over theirs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from verl import DataProto

from unify_posttrain.algorithms import Algorithm, ScoredRows
from unify_posttrain.experience.advantages import override_advantages
from unify_posttrain.objective import token_class
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN, MixedBatch, success_values


def replace_advantages(algorithm: Algorithm, mixed: MixedBatch, batch: DataProto, normalise_by_std: bool) -> dict[str, float]:
    """Replace advantages in place: the algorithm's own, and those of groups that hold more than their rollouts.

    Args:
        algorithm: of the step.
        mixed: what the gate decided for it.
        batch: after verl's advantage stage.
        normalise_by_std: `algorithm.norm_adv_by_std_in_grpo`.

    Returns:
        `fusion/*` metrics of them.
    """
    scores = batch.batch["token_level_scores"].sum(dim=-1)
    metrics = {"fusion/kl_seq": 0.0}
    if {"old_log_probs", "ref_log_prob"} <= set(batch.batch.keys()):
        metrics.update(_own_advantages(algorithm, batch, scores))
    if KIND_COLUMN not in batch.non_tensor_batch:
        return metrics
    prefixed = (token_class(batch.batch, "demo").any(dim=-1)).numpy()
    values = override_advantages(
        mixed.plan,
        batch.non_tensor_batch[KIND_COLUMN],
        batch.non_tensor_batch["uid"],
        scores.numpy(),
        mixed.scores,
        baseline=algorithm.fusion.baseline,
        off_advantage=algorithm.fusion.hpt.off_advantage,
        normalise_by_std=normalise_by_std,
        prefixed=prefixed,
    )
    _set_advantages(batch, values)
    return metrics


def _own_advantages(algorithm: Algorithm, batch: DataProto, scores: torch.Tensor) -> Mapping[str, float]:
    """The algorithm's own advantages of the rows that were sampled; padding is not among them."""
    success = torch.tensor([float(value) for value in success_values(algorithm.fusion, batch, scores.tolist())])
    mask = token_class(batch.batch, "on")
    sampled = mask.any(dim=-1).nonzero().squeeze(-1)
    streams = [tensor[sampled] for tensor in (scores, success, mask, batch.batch["old_log_probs"], batch.batch["ref_log_prob"])]
    uids = [str(batch.non_tensor_batch["uid"][row]) for row in sampled.tolist()]
    rows = ScoredRows(*streams[:2], uids, *streams[2:])
    own = algorithm.row_advantages(rows)
    if own is None:
        return {}
    _set_advantages(batch, torch.zeros_like(scores, dtype=torch.float64).index_copy(0, sampled, own[0].double()).numpy())
    rewards = algorithm.rewards(rows).to(scores.dtype)
    batch.batch["scores"] = torch.zeros_like(scores).index_copy(0, sampled, rewards)
    return own[1]


def _set_advantages(batch: DataProto, values: np.ndarray) -> None:
    """Replace the advantages of rows whose value is not NaN, on trained tokens."""
    replaced = torch.from_numpy(~np.isnan(values)).unsqueeze(-1)
    new = torch.from_numpy(np.nan_to_num(values)).to(torch.float32).unsqueeze(-1) * batch.batch["response_mask"]
    for name in ("advantages", "returns"):
        batch.batch[name] = torch.where(replaced, new, batch.batch[name])
