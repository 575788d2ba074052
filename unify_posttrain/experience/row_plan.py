"""The row plan: how many padding rows a batch needs, and which row goes to which rank and mini-batch.

A training step has S = train_batch_size / ppo_mini_batch_size optimizer steps whatever the gate decided, and every rank must
see as many rows in each of them as every other rank. The routed rows are therefore padded to a multiple of ranks × S and
dealt so that each (rank, mini-batch) gets the same number of rows, about the same number of tokens, and its share of the
demonstrations.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class RowPlan(NamedTuple):
    """rows = routed + padding; padding = zero-weight rows; per_rank and per_mini_batch = rows of one rank (and mini-batch)."""

    rows: int
    padding: int
    per_rank: int
    per_mini_batch: int


def plan_rows(routed: int, ranks: int, mini_batches: int) -> RowPlan:
    """Pad `routed` rows to a multiple of ranks × mini_batches (at least one row each).

    >>> plan_rows(954, ranks=8, mini_batches=2)
    RowPlan(rows=960, padding=6, per_rank=120, per_mini_batch=60)
    """
    if ranks < 1 or mini_batches < 1:
        raise ValueError(f"ranks={ranks} and mini_batches={mini_batches} must be at least 1")
    unit = ranks * mini_batches
    rows = max(unit, -(-routed // unit) * unit)
    return RowPlan(rows, rows - routed, rows // ranks, rows // unit)


def deal(lengths: Sequence[int] | np.ndarray, kinds: Sequence[int] | np.ndarray, ranks: int, mini_batches: int) -> np.ndarray:
    """Order rows so that rank r's mini-batch m is the contiguous block number r·S + m.

    Rows are sorted by kind and length and dealt one by one to the blocks: block sizes are equal, each kind is spread to within one
    row, and the token counts of two blocks differ by at most the longest row of each kind.

    Args:
        lengths: tokens per row, (B,), B a multiple of ranks × mini_batches.
        kinds: small integers per row, (B,), e.g. 0 rollout, 1 demonstration, 2 padding.
        ranks, mini_batches: R and S.

    Returns:
        (B,) permutation: position -> row.

    Raises:
        ValueError: B is not a multiple of R × S.
    """
    blocks = ranks * mini_batches
    if len(lengths) % blocks:
        raise ValueError(f"{len(lengths)} rows cannot be dealt to {ranks} ranks x {mini_batches} mini-batches")
    order = np.lexsort((np.arange(len(lengths)), -np.asarray(lengths), np.asarray(kinds)))
    # Card number i goes to block i % blocks; block c is mini-batch c % S of rank c // S.
    return order.reshape(-1, blocks).T.reshape(-1)
