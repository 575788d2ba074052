"""The metrics of validation during training: verl's, and beside them those of the evaluation command."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unify_posttrain.algorithms import FusionConfig
from unify_posttrain.measures.metrics import validation_metrics
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rewards.contract import GOLD, MASKS, UNSCORED, Scored
from unify_posttrain.trainer.rewards import RewardReader, fields_of

ACCURACY, REWARD, PREDICTION = "acc", "reward", "pred"  # fields of validated samples; `reward` is verl's own

Update = Callable[[Any, list[str], dict[str, list], list], dict[str, Any]]  # verl's (sources, uids, fields, turns) -> metrics


@dataclass(frozen=True)
class Samples:
    """Validated samples: data source and uid of each, and a value per field, None where a sample has none."""

    sources: np.ndarray
    uids: Sequence[str]
    fields: Mapping[str, Sequence[Any]]

    def scored(self) -> Samples:
        """Without the problems of which a sample could not be scored: a mean must neither count it as wrong nor be over fewer."""
        without = {uid for uid, lacks in zip(self.uids, self.fields.get(UNSCORED, ()), strict=False) if lacks}
        kept = self._where([uid not in without for uid in self.uids])
        return Samples(kept.sources, kept.uids, {name: values for name, values in kept.fields.items() if name != UNSCORED})

    def of_field(self, name: str) -> Samples:
        """Those that have a field, with that field alone."""
        kept = self._where([value is not None for value in self.fields[name]])
        return Samples(kept.sources, kept.uids, {name: kept.fields[name]})

    def _where(self, mask: Sequence[bool]) -> Samples:
        index = np.flatnonzero(np.asarray(mask, dtype=bool))
        fields = {name: [values[row] for row in index] for name, values in self.fields.items()}
        return Samples(np.asarray(self.sources, dtype=object)[index], [self.uids[row] for row in index], fields)


def validated_metrics(
    reader: RewardReader,
    verl: Update,
    fusion: FusionConfig,
    sources: np.ndarray,
    uids: Sequence[str],
    fields: Mapping[str, Sequence[Any]],
    turns: list,
) -> dict[str, Any]:
    """All metrics of a validation: verl's and ours.

    Args:
        reader: of the run's reward; it ends a run whose function fails.
        verl: computes verl's.
        fusion: whose `success_threshold` is read.
        sources, uids, fields, turns: what verl has collected.

    Raises:
        RewardFunctionError: see `RewardReader.read`.
    """
    if OUTCOME in fields:
        reader.check([Scored.from_dict(plain) for plain in fields[OUTCOME]])
    samples = Samples(sources, uids, validated_fields(fields))
    return {**verl_metrics(verl, samples, turns), **evaluation_metrics(samples, fusion.success_threshold)}


def validated_fields(fields: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Fields of a whole validation, whose batches verl has put behind one another: columns in place of the outcomes; missing values
    are None, which JSON can say."""
    if OUTCOME not in fields:
        return {name: list(values) for name, values in fields.items()}
    outcomes = [Scored.from_dict(plain) for plain in fields[OUTCOME]]
    names = dict.fromkeys(name for scored in outcomes for name in fields_of(scored))
    rows = [fields_of(scored, names) for scored in outcomes]
    found = {name: [MASKS.get(name) if row.get(name) is None else row[name] for row in rows] for name in names}
    return {**{name: list(values) for name, values in fields.items() if name != OUTCOME}, **found}


def verl_metrics(update: Update, samples: Samples, turns: list) -> dict[str, Any]:
    """verl's metrics of validated samples.

    Args:
        update: computes them; it wants a value of every field from every sample, of one kind.
        samples: as validated; fields that only some of them have are given to verl by themselves.
        turns: verl's own.
    """
    scored = samples.scored()
    fields = {name: _of_one_kind(values) for name, values in scored.fields.items()}
    complete = {name: values for name, values in fields.items() if None not in values}
    metrics = update(scored.sources, list(scored.uids), complete, turns)
    for name in fields.keys() - complete.keys():
        part = Samples(scored.sources, scored.uids, fields).of_field(name)
        metrics |= update(part.sources, list(part.uids), dict(part.fields), [])
    return metrics


def _of_one_kind(values: Sequence[Any]) -> list[Any]:
    if any(isinstance(value, str) for value in values):
        return [None if value is None else str(value) for value in values]
    return list(values)


def evaluation_metrics(samples: Samples, success_threshold: float) -> dict[str, float]:
    """`val-eval/*` of validated samples.

    Args:
        samples: with what the reward function says of each; `acc` is 1 or 0, a score is measured by the threshold.
        success_threshold: `fusion.success_threshold`.
    """
    fields = samples.fields
    lacking, gold = fields.get(UNSCORED), fields.get(GOLD)
    usable = None
    if lacking is not None or gold is not None:
        pairs = zip(lacking or [0] * len(samples.uids), gold or [1] * len(samples.uids), strict=True)
        usable = [float(fine is None or bool(fine)) * (not lacks) for lacks, fine in pairs]
    return validation_metrics(
        sources=[str(source) for source in samples.sources],
        problems=list(samples.uids),
        scores=[np.nan if value is None else value for value in fields[ACCURACY if ACCURACY in fields else REWARD]],
        answers=fields.get(PREDICTION),
        usable=usable,
        threshold=1.0 if ACCURACY in fields else success_threshold,
    )


def mean_accuracy(metrics: Mapping[str, Any]) -> float | None:
    """Mean over sources of verl's main validation figures; None if there is none."""
    values = [float(value) for key, value in metrics.items() if key.startswith("val-core/")]
    return sum(values) / len(values) if values else None
