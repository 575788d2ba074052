"""Single-turn generation with a seed per rollout, so that a run repeats and a resumed run continues exactly; a rollout may begin
with given tokens (a hint, or a part of a demonstration) and is then continued by the policy."""

from __future__ import annotations

from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from unify_posttrain.backend.seams import loop_arguments, loop_fixes
from unify_posttrain.rollout.pictures import banned_bias
from unify_posttrain.rollout.seeds import rollout_seeds

__all__ = [
    "NEW_TOKENS_COLUMN",
    "PREFIX_COLUMN",
    "PREFIX_TRAINED_COLUMN",
    "SEED_COLUMN",
    "SeededSingleTurnAgentLoop",
    "WithoutSystemPrompt",
    "rollout_seeds",
]

SEED_COLUMN = "rollout_seed"
PREFIX_COLUMN = "response_prefix_ids"
PREFIX_TRAINED_COLUMN = "response_prefix_trained"
NEW_TOKENS_COLUMN = "max_new_tokens"  # that the policy may add, where less than the response has room for


def room_for_tokens(prefix: int, response: int, limit: int) -> int:
    """How many tokens the policy may add to a response prefix.

    Args:
        prefix: tokens of it.
        response: `data.max_response_length`.
        limit: the experience rule's own.

    Raises:
        ValueError: none.
    """
    room = min(response - prefix, int(limit))
    if room < 1:
        raise ValueError(f"a response prefix of {prefix} tokens leaves no room to generate in data.max_response_length={response}")
    return room


class WithoutSystemPrompt(loop_fixes(), AgentLoopBase):
    """An agent loop that verl does not let look for a system prompt."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **loop_arguments(kwargs, _NoSystemPrompt()))
        self.tokenizer = kwargs["tokenizer"]


class SeededSingleTurnAgentLoop(WithoutSystemPrompt, SingleTurnAgentLoop):
    """verl's single-turn loop. The row's `rollout_seed` becomes the request's `seed`. Its `response_prefix_ids` become the first
    tokens of the response: appended to the prompt for the engine, in front of what it generates for everyone else."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        # A copy: verl shares one dictionary between all loops of a worker.
        params = {**sampling_params, "seed": int(kwargs[SEED_COLUMN])} if SEED_COLUMN in kwargs else dict(sampling_params)
        if self.processor is not None:
            params["logit_bias"] = banned_bias(self.tokenizer)
        prefix = [int(token) for token in kwargs.get(PREFIX_COLUMN, ())]
        room = room_for_tokens(len(prefix), self.response_length, int(kwargs.get(NEW_TOKENS_COLUMN, self.response_length)))
        if not prefix:
            return await super().run({**params, **({"max_tokens": room} if room < self.response_length else {})}, **kwargs)
        self.server_manager = _AfterPrefix(self.server_manager, prefix)  # verl makes one loop object per row
        output = await super().run({**params, "max_tokens": room}, **kwargs)
        trained = int(bool(kwargs[PREFIX_TRAINED_COLUMN]))
        output.response_ids = [*prefix, *output.response_ids[:room]]
        output.response_mask = [trained] * len(prefix) + output.response_mask[:room]
        if output.response_logprobs is not None:
            output.response_logprobs = [0.0] * len(prefix) + output.response_logprobs[:room]  # not sampled; nobody reads them
        return output


class _NoSystemPrompt:
    """A tokenizer whose template writes nothing, so that verl finds no system prompt."""

    @staticmethod
    def apply_chat_template(*_: Any, **__: Any) -> list[int]:
        return []


class _AfterPrefix:
    """A server manager that generates after prompt and response prefix."""

    def __init__(self, manager: Any, prefix: list[int]) -> None:
        self.manager, self.prefix = manager, prefix

    async def generate(self, request_id: str, *, prompt_ids: list[int], **kwargs: Any) -> Any:
        return await self.manager.generate(request_id=request_id, prompt_ids=[*prompt_ids, *self.prefix], **kwargs)
