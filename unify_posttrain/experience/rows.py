"""A batch as plain data: tensors and columns that share their first dimension. What the adapter's DataProto looks like here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from unify_posttrain.experience.ragged import Source, Spans, gather, token_counts

ROLLOUT, DEMONSTRATION, PADDING = 0, 1, 2  # what a row of a mixed batch is


@dataclass
class Rows:
    """B rows: `tensors` name -> (B, ...) and `columns` name -> (B,) array, mostly of objects."""

    tensors: dict[str, Tensor]
    columns: dict[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        for tensor in self.tensors.values():
            return int(tensor.shape[0])
        for column in self.columns.values():
            return len(column)
        return 0

    @property
    def lengths(self) -> np.ndarray:
        """(B,) attended tokens per row."""
        return token_counts(self.tensors["attention_mask"])


def assemble(parts: list[tuple[Rows, np.ndarray, np.ndarray]], total: int) -> Rows:
    """Build `total` rows from several sources in one copy per tensor.

    Args:
        parts: (source, picked, positions) triples: source row `picked[i]` goes to output row `positions[i]`. The first part
            decides which tensors and columns exist, with which dtype and width; a later part that lacks one contributes
            zeros or None there. Positions of all parts cover 0..total-1 once.
        total: output rows.

    Raises:
        ValueError: a tensor of a later part has another width.
    """
    template = parts[0][0]
    tensors = gather([Source(rows.tensors, picked, at, Spans.of(rows.tensors)) for rows, picked, at in parts], total)
    columns = {}
    for name, column in template.columns.items():
        out_column = np.full(total, None if column.dtype.kind == "O" else 0, dtype=column.dtype)
        for source, picked, positions in parts:
            if name not in source.columns:
                continue
            chosen = _as_dtype(source.columns[name][picked], out_column.dtype)
            # One by one for objects: numpy would unpack lists and dicts of equal length.
            for position, value in zip(positions, chosen, strict=True):
                out_column[position] = value
        columns[name] = out_column
    return Rows(tensors, columns)


def object_column(values: list[Any]) -> np.ndarray:
    """(B,) object array whose elements are exactly `values`, lists and dicts included."""
    column = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        column[index] = value
    return column


def _as_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return values if dtype.kind == "O" or values.dtype == dtype else values.astype(dtype)
