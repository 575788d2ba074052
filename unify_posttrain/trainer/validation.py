"""Validation during training, with the metrics of the evaluation command beside verl's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from verl.experimental.separation.ray_trainer import SeparateRayPPOTrainer

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.measures.metrics import validation_metrics
from unify_posttrain.trainer.batch_mixer import GOLD_FIELD

ACCURACY, REWARD, PREDICTION = "acc", "reward", "pred"  # fields of validated samples; `reward` is verl's own


class ValidationStage(SeparateRayPPOTrainer):
    """Part of FusionTrainer."""

    fusion: FusionConfig

    def _val_metrics_update(
        self,
        data_sources: np.ndarray,
        sample_uids: Sequence[str],
        reward_extra_infos_dict: Mapping[str, Sequence[Any]],
        sample_turns: Sequence[np.ndarray],
    ) -> dict[str, Any]:
        metrics = super()._val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, sample_turns)
        fields = reward_extra_infos_dict
        own = validation_metrics(
            sources=[str(source) for source in data_sources],
            problems=list(sample_uids),
            scores=fields[ACCURACY if ACCURACY in fields else REWARD],
            answers=fields.get(PREDICTION),
            usable=fields.get(GOLD_FIELD),
            # `acc` is 1 or 0, a score is measured by the run's threshold
            threshold=1.0 if ACCURACY in fields else self.fusion.success_threshold,
        )
        return {**metrics, **own}
