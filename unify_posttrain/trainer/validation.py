"""The evaluation command's metrics of validation during training, which stand beside verl's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unify_posttrain.measures.metrics import validation_metrics
from unify_posttrain.trainer.mixed_batch import GOLD_FIELD

ACCURACY, REWARD, PREDICTION = "acc", "reward", "pred"  # fields of validated samples; `reward` is verl's own


def evaluation_metrics(
    sources: np.ndarray, problems: Sequence[str], fields: Mapping[str, Sequence[Any]], success_threshold: float
) -> dict[str, float]:
    """`val-eval/*` of validated samples.

    Args:
        sources, problems: data source and uid of each sample.
        fields: what the reward function says of each; `acc` is 1 or 0, a score is measured by the threshold.
        success_threshold: `fusion.success_threshold`.
    """
    return validation_metrics(
        sources=[str(source) for source in sources],
        problems=list(problems),
        scores=fields[ACCURACY if ACCURACY in fields else REWARD],
        answers=fields.get(PREDICTION),
        usable=fields.get(GOLD_FIELD),
        threshold=1.0 if ACCURACY in fields else success_threshold,
    )


def mean_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Mean over sources of verl's main validation figures; None if there is none."""
    values = [float(value) for key, value in metrics.items() if key.startswith("val-core/")]
    return sum(values) / len(values) if values else None
