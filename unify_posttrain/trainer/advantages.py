"""The advantages of a batch: the algorithm's object, applied to its rows over what verl's estimator has left there."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from verl import DataProto

from unify_posttrain.algorithms import Algorithm
from unify_posttrain.experience.advantages import ScoredRows, row_advantages
from unify_posttrain.experience.ragged import per_row
from unify_posttrain.experience.rows import DEMONSTRATION, PADDING, ROLLOUT
from unify_posttrain.objective import token_class
from unify_posttrain.trainer.mixed_batch import KIND_COLUMN, MixedBatch, success_values
from unify_posttrain.trainer.turns import Turns


def set_advantages(algorithm: Algorithm, mixed: MixedBatch, batch: DataProto, turns: Turns | None = None) -> dict[str, float]:
    """Put the algorithm's advantages into `advantages` and `returns`, and its rewards into the stream `scores`; in place.

    Args:
        algorithm: of the step.
        mixed: what was decided for it.
        batch: after verl's advantage stage, with `token_level_rewards`.
        turns: of rollouts that are episodes, which estimate their own where they are asked to.

    Returns:
        `fusion/*` metrics of them.

    Raises:
        KeyError: a stream that the advantage reads is missing.
    """
    advantage, tensors = algorithm.advantage, batch.batch
    if turns is not None:
        turns.estimate(batch)
    kinds = batch.non_tensor_batch.get(KIND_COLUMN, np.full(len(batch), ROLLOUT, dtype=np.int8))
    real = torch.from_numpy(np.flatnonzero(kinds != PADDING))
    if advantage.estimator is not None or not len(real):
        _silence(batch, kinds == PADDING)
        return {}
    rows = _scored_rows(algorithm, mixed, batch, kinds, real)
    values = row_advantages(advantage, rows, mixed.plan, algorithm.advantage_terms)
    spread = tensors["token_level_rewards"].new_zeros(len(batch)).index_copy(0, real, values.to(torch.float32))
    tensors["advantages"] = tensors["returns"] = per_row(spread, tensors["response_mask"])
    if any("scores" in term.streams for term in algorithm.terms):
        rewards = advantage.rewards(rows).to(torch.float32)
        tensors["scores"] = tensors["token_level_rewards"].new_zeros(len(batch)).index_copy(0, real, rewards)
    return dict(advantage.metrics(rows))


def _scored_rows(algorithm: Algorithm, mixed: MixedBatch, batch: DataProto, kinds: np.ndarray, real: torch.Tensor) -> ScoredRows:
    tensors, advantage = batch.batch, algorithm.advantage
    absent = [stream for stream in advantage.streams if stream not in tensors]
    if absent:
        raise KeyError(
            f"the advantage of algorithm={algorithm.name} needs {absent} in the batch; present: {sorted(tensors.keys())}"
        )
    scores = tensors["token_level_rewards"].sum(dim=-1)
    success = [
        float(value) for value in success_values(algorithm.fusion, batch, tensors["token_level_scores"].sum(dim=-1).tolist())
    ]
    streams: dict[str, Any] = {stream: tensors[stream][real] for stream in advantage.streams}
    if streams:
        streams["mask"] = token_class(tensors, "on")[real]
    prefixed = token_class(tensors, "demo").any(dim=-1) & torch.from_numpy(kinds != DEMONSTRATION)
    uids = batch.non_tensor_batch["uid"]
    return ScoredRows(
        scores[real],
        [str(uids[row]) for row in real.tolist()],
        kinds[real.numpy()],
        prefixed=prefixed[real],
        success=torch.tensor(success)[real],
        generated=mixed.scores,
        **streams,
    )


def _silence(batch: DataProto, padding: np.ndarray) -> None:
    """Padding is in no group, so that verl's estimators would score it; nobody reads it."""
    if padding.any():
        for name in ("advantages", "returns"):
            batch.batch[name] = torch.where(torch.from_numpy(padding).unsqueeze(-1), 0.0, batch.batch[name])
