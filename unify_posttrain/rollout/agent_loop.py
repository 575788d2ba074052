"""Single-turn generation with a seed per rollout, so that a run repeats and a resumed run continues exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

SEED_COLUMN = "rollout_seed"


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


class SeededSingleTurnAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop; the row's `rollout_seed` becomes the request's `seed`."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        # A copy: verl shares one dictionary between all loops of a worker.
        params = {**sampling_params, "seed": int(kwargs[SEED_COLUMN])} if SEED_COLUMN in kwargs else dict(sampling_params)
        return await super().run(params, **kwargs)
