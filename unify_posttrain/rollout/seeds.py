"""The seed of every rollout: a function of what is generated, not of when or where."""

from __future__ import annotations

import numpy as np


def rollout_seeds(seed: int, step: int, row_ids: np.ndarray, validate: bool = False) -> np.ndarray:
    """One 31-bit seed per rollout from (run seed, step, prompt, number of the rollout among its prompt's).

    Args:
        seed: `fusion.seed`.
        step: training step; validation at a step draws from a stream of its own.
        row_ids: (B,) prompt of each rollout; equal ids are numbered in order.

    Returns:
        (B,) int64, independent of the order of prompts, of worker counts and of earlier steps.
    """
    seen: dict[int, int] = {}
    seeds = np.empty(len(row_ids), dtype=np.int64)
    for position, row_id in enumerate(row_ids):
        number = seen.get(row_id, 0)
        seen[row_id] = number + 1
        entropy = np.random.SeedSequence([seed, step, int(row_id), number, int(validate)])
        seeds[position] = int(entropy.generate_state(1)[0]) & 0x7FFFFFFF
    return seeds
