"""From the outcome of every reward call to columns of the batch, metrics, and the end of a run whose reward function fails."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from verl import DataProto

from unify_posttrain.experience.rows import object_column
from unify_posttrain.rewards.calling import OUTCOME
from unify_posttrain.rewards.contract import ACCURACY, FAULT, MASKS, SCORE, UNSCORED, Scored
from unify_posttrain.rewards.protection import Protection, Tally, function_name, tally
from unify_posttrain.runs.failures import RunEndedError

logger = logging.getLogger(__name__)

KEYS = "reward_extra_keys"  # verl's list of the columns that the reward made


class RewardFunctionError(RunEndedError):
    """The reward function fails too often, or does what no run can go on with."""


@dataclass
class RewardReader:
    """Reads outcomes, and remembers which fields there have been: a batch in which nobody has one still has its column.

    Attributes:
        where: the function, for messages.
        protection: how much may fail.
        score_rows: scores rows that are no rollouts.
    """

    where: str
    protection: Protection
    score_rows: Callable[[DataProto], DataProto] | None = None
    seen: dict[str, bool] = field(default_factory=dict)  # name of a field -> whether it has held text

    @classmethod
    def from_config(cls, config: Any, score_rows: Callable[[DataProto], DataProto] | None) -> RewardReader:
        node = OmegaConf.to_container(config.reward.protection, resolve=True)
        return cls(function_name(config.reward.custom_reward_function), Protection.from_node(node), score_rows)

    def score(self, rows: DataProto) -> DataProto:
        """Rows that are no rollouts, scored and read; see :meth:`read`."""
        return self.read(self.score_rows(rows))

    def read(self, data: DataProto) -> DataProto:
        """The batch with a column per field in place of the outcomes.

        Numbers that are missing are NaN, texts None. Rows without a score have `unscored` 1 and score 0.

        Raises:
            RewardFunctionError: see there; names function, file, and the last failure.
        """
        if OUTCOME not in data.non_tensor_batch:
            return data
        outcomes = [Scored.from_dict(plain) for plain in data.non_tensor_batch.pop(OUTCOME)]
        data.non_tensor_batch.pop("reward_extra_info", None)  # verl's second copy
        self.check(outcomes, data.non_tensor_batch.get("row_id"))
        columns = self.columns(outcomes)
        clash = next((name for name in columns if name in data.non_tensor_batch or name in data.batch), None)
        if clash is not None:
            raise RewardFunctionError(
                f"{self.where} returned a field {clash!r}, a name that the batch has for something else; rename it"
            )
        data.non_tensor_batch.update(columns)
        data.meta_info[KEYS] = [name for name in columns if name != UNSCORED]
        return data

    def check(self, outcomes: Sequence[Scored], row_ids: Iterable[Any] | None = None) -> Tally:
        """Count, warn, and end the run if it must not go on; see :meth:`read`."""
        refused = next((scored for scored in outcomes if scored.refused), None)
        if refused is not None:
            raise RewardFunctionError(refused.detail)
        counted = tally(outcomes)
        if counted.failed:
            rows = [] if row_ids is None else [int(row) for row, scored in zip(row_ids, outcomes, strict=True) if _failed(scored)]
            logger.warning(
                "%s: of %d calls %d failed and score 0 (%s), %d gave no score and are masked%s; the last: %s",
                self.where,
                counted.calls,
                sum(counted.faults.values()),
                ", ".join(f"{count} {kind}" for kind, count in counted.faults.items()) or "none",
                counted.unscored,
                f"; training rows {', '.join(map(str, sorted(set(rows))[:8]))}" if rows else "",
                counted.last,
            )
        excess = counted.excess(self.protection, self.where)
        if excess is not None:
            raise RewardFunctionError(excess)
        return counted

    def columns(self, outcomes: Sequence[Scored]) -> dict[str, np.ndarray]:
        """A column per field that any row has or ever had."""
        for name, value in (item for scored in outcomes for item in fields_of(scored).items()):
            self.seen[name] = self.seen.get(name, False) or isinstance(value, str)
        rows = [fields_of(scored, self.seen) for scored in outcomes]
        return {name: column(name, [fields.get(name) for fields in rows], text) for name, text in self.seen.items()}


def _failed(scored: Scored) -> bool:
    return scored.fault is not None or scored.unscored


def fields_of(scored: Scored, known: Container[str] = ()) -> dict[str, Any]:
    """The fields of a row and, where they apply, what became of it. A fault counts as wrong in the fields that the others have."""
    fields = dict(scored.fields)
    if scored.fault is not None:
        fields |= {FAULT: 1.0, **{name: 0.0 for name in (ACCURACY, SCORE) if name in known}}
    if scored.unscored:
        fields[UNSCORED] = 1.0
    return fields


def column(name: str, values: Sequence[Any], text: bool = False) -> np.ndarray:
    """(B,) array of one field, which may be of texts; see :meth:`RewardReader.read` for missing values."""
    if name in MASKS:
        return np.array([MASKS[name] if value is None else float(value) for value in values])
    present = [value for value in values if value is not None]
    if text or any(isinstance(value, str) for value in present):
        return object_column(list(values))
    if len(present) < len(values):
        return np.array([np.nan if value is None else float(value) for value in values])
    return np.array(values)


def aligned(batches: Sequence[DataProto]) -> Sequence[DataProto]:
    """Batches of one step, each with the columns that any of them has: a field may turn up in the second batch only."""
    keys = list(dict.fromkeys(name for batch in batches for name in batch.meta_info.get(KEYS, ())))
    columns = [batch.non_tensor_batch for batch in batches]
    names = [name for name in (*keys, UNSCORED) if any(name in each for each in columns)]
    text = {name: any(name in each and each[name].dtype.kind == "O" for each in columns) for name in names}
    for batch in batches:
        for name in names:
            if name not in batch.non_tensor_batch:
                batch.non_tensor_batch[name] = column(name, [None] * len(batch), text[name])
        batch.meta_info[KEYS] = keys
    return batches


def unscored_rows(data: DataProto | None) -> np.ndarray:
    """(B,) bool: rows to which the reward function gave no score."""
    if data is None or UNSCORED not in data.non_tensor_batch:
        return np.zeros(0 if data is None else len(data), dtype=bool)
    return data.non_tensor_batch[UNSCORED].astype(bool)
