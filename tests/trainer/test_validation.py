"""Validation during training: verl's metrics, and beside them those of the evaluation command on the same samples."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from unify_posttrain.trainer.fusion_trainer import FusionTrainer
from unify_posttrain.trainer.validation import mean_accuracy

SOURCES = np.array(["sums"] * 6 + ["words"] * 2, dtype=object)
UIDS = ["p", "p", "q", "q", "r", "r", "s", "s"]


def metrics_of(fields: dict[str, list], threshold: float = 1.0) -> dict[str, Any]:
    """Through the trainer's hook, which needs no more than the threshold."""
    trainer = object.__new__(FusionTrainer)
    trainer.fusion, trainer.rewards = SimpleNamespace(success_threshold=threshold), None
    return trainer._val_metrics_update(SOURCES, UIDS, fields, [])


def test_both_sets_of_metrics() -> None:
    fields = {
        "reward": [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "acc": [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        "pred": ["5", "6", "7", "7", "", "8", "a", "b"],
        "gold_ok": [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0],
    }
    metrics = metrics_of(fields)
    # r cannot be graded: p has 1 of 2 right, q 2 of 2; verl's mean counts r as wrong: 3 of 6
    assert metrics["val-eval/sums/avg@2"] == pytest.approx(0.75)
    assert metrics["val-core/sums/acc/mean@2"] == pytest.approx(0.5)
    assert (metrics["val-eval/sums/pass@1"], metrics["val-eval/sums/pass@2"]) == (pytest.approx(0.75), 1.0)
    # the majority of p is its first answer, which is right
    assert (metrics["val-eval/sums/maj@2"], metrics["val-eval/sums/no_answer"]) == (1.0, 0.0)
    assert (metrics["val-eval/sums/problems"], metrics["val-eval/sums/excluded"]) == (2.0, 1.0)
    assert metrics["val-eval/words/avg@2"] == 0.5


def test_a_score_is_measured_by_the_threshold() -> None:
    fields = {"reward": [0.9, 0.4, 0.6, 0.6, 0.0, 0.0, 1.0, 1.0]}
    metrics = metrics_of(fields, threshold=0.5)
    assert metrics["val-eval/sums/avg@2"] == pytest.approx(0.5)
    assert not any("maj@" in name and name.startswith("val-eval") for name in metrics)


def test_the_accuracy_of_a_phase_is_the_mean_over_sources() -> None:
    assert mean_accuracy({"val-core/a/acc/mean@2": 0.5, "val-core/b/acc/mean@2": 1, "val-aux/a/x": 9, "actor/lr": 9}) == 0.75
    assert mean_accuracy({"val-aux/a/x": 9}) is None, "not validated"
