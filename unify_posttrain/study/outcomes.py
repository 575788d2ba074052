"""What a run achieved and what it cost, from its `metrics.jsonl` (lines {"step": …, "data": {…}}).

A key that is missing or not a finite number gives None, never 0: "not measured" and "none" are different results.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCURACY = re.compile(r"val-core/(?P<source>.+)_(?P<split>[^_/]+)/acc/mean@1")
STEP_SECONDS = "timing_s/step"

Metrics = dict[int, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """accuracy: split -> {step: share of problems solved}, in [0, 1]. Counts are sums over the run."""

    accuracy: dict[str, dict[int, float]]
    demonstrations: float | None  # rows trained on a demonstration, those of a replay buffer included
    hint_tokens: float | None  # of methods that show part of a demonstration in the prompt; None where there are no hints
    tokens_generated: float | None
    training_seconds: float | None  # of the steps, validation included where a step validates
    final_step: int | None

    def before(self, split: str) -> float | None:
        """Accuracy at step 0; None if it was not measured."""
        return self.accuracy.get(split, {}).get(0)

    def after(self, split: str) -> float | None:
        """Accuracy of the last validation, if it was made at the end of the run; None otherwise."""
        curve = self.accuracy.get(split, {})
        return curve[max(curve)] if curve and max(curve) == self.final_step else None


def read_metrics(path: Path) -> Metrics:
    """Step -> metrics; a line that a kill has cut short is left out, and of a repeated step the keys are merged."""
    metrics: Metrics = {}
    if not path.exists():
        return metrics
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        metrics.setdefault(int(entry["step"]), {}).update(entry["data"])
    return metrics


def measure(metrics: Metrics) -> Outcome:
    """The outcome of a run.

    Raises:
        ValueError: two validation sources with the same split, e.g. arithmetic_hard and countdown_hard.
    """
    demonstrations, replayed = _sum(metrics, "fusion/rows_demo"), _sum(metrics, "fusion/replay_rows")
    return Outcome(
        accuracy=_accuracy(metrics),
        demonstrations=demonstrations if demonstrations is None or replayed is None else demonstrations + replayed,
        hint_tokens=_sum(metrics, "fusion/tokens_hint") or None,
        tokens_generated=_sum(metrics, "fusion/tokens_generated"),
        training_seconds=_sum(metrics, STEP_SECONDS),
        final_step=max(metrics, default=None),
    )


def _accuracy(metrics: Metrics) -> dict[str, dict[int, float]]:
    curves: dict[str, dict[int, float]] = {}
    sources: dict[str, str] = {}
    for step, data in sorted(metrics.items()):
        for key, value in data.items():
            match = ACCURACY.fullmatch(key)
            if match is None:
                continue
            source, split = match["source"], match["split"]
            if sources.setdefault(split, source) != source:
                raise ValueError(
                    f"validation sources {sources[split]}_{split} and {source}_{split} share a split name; "
                    "let data.val_files of a run hold one task"
                )
            if _finite(value):
                curves.setdefault(split, {})[step] = float(value)
    return curves


def _sum(metrics: Metrics, key: str) -> float | None:
    """Sum over the steps that have the key; None if no step has it, or one has no finite number."""
    values = [data[key] for data in metrics.values() if key in data]
    return sum(map(float, values)) if values and _all_finite(values) else None


def _all_finite(values: Iterable[Any]) -> bool:
    return all(map(_finite, values))


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
