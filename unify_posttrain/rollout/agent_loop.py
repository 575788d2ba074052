"""Single-turn generation with a seed per rollout, so that a run repeats and a resumed run continues exactly; a rollout may begin
with given tokens (a hint, or a part of a demonstration) and is then continued by the policy."""

from __future__ import annotations

from typing import Any

import numpy as np
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

SEED_COLUMN = "rollout_seed"
OPENING_COLUMN = "opening_ids"
OPENING_TRAINED_COLUMN = "opening_trained"


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
    """verl's single-turn loop; the row's `rollout_seed` becomes the request's `seed`, its `opening_ids` the first tokens of the
    response: appended to the prompt for the engine, in front of what it generates for everyone else."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        # A copy: verl shares one dictionary between all loops of a worker.
        params = {**sampling_params, "seed": int(kwargs[SEED_COLUMN])} if SEED_COLUMN in kwargs else dict(sampling_params)
        opening = [int(token) for token in kwargs.get(OPENING_COLUMN, ())]
        if not opening:
            return await super().run(params, **kwargs)
        room = self.response_length - len(opening)
        if room < 1:
            raise ValueError(
                f"an opening of {len(opening)} tokens leaves no room to generate in data.max_response_length={self.response_length}"
            )
        self.server_manager = _AfterOpening(self.server_manager, opening)  # verl makes one loop object per row
        output = await super().run({**params, "max_tokens": room}, **kwargs)
        trained = int(bool(kwargs[OPENING_TRAINED_COLUMN]))
        output.response_ids = [*opening, *output.response_ids[:room]]
        output.response_mask = [trained] * len(opening) + output.response_mask[:room]
        if output.response_logprobs is not None:
            output.response_logprobs = [0.0] * len(opening) + output.response_logprobs[:room]  # not sampled; nobody reads them
        return output


class _AfterOpening:
    """A server manager that generates after prompt and opening."""

    def __init__(self, manager: Any, opening: list[int]) -> None:
        self.manager, self.opening = manager, opening

    async def generate(self, request_id: str, *, prompt_ids: list[int], **kwargs: Any) -> Any:
        return await self.manager.generate(request_id=request_id, prompt_ids=[*prompt_ids, *self.opening], **kwargs)
