"""An agent loop of two turns: the model answers, is told that the user wants it again, and answers again."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopMetrics, AgentLoopOutput

from unify_posttrain.rollout.agent_loop import SEED_COLUMN, WithoutSystemPrompt

TURNS = 2
TURN_TOKENS = 14  # two turns and what is said between them fit into the 40 tokens of a response
OBSERVATION = "<|end|><|user|>again<|end|><|assistant|>"  # 9 tokens


class TwoTurnAgentLoop(WithoutSystemPrompt):
    """Sampled ids are kept as they are, with mask 1; the observation is inserted with mask 0 and log-probability 0."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        prompt_ids = await self.apply_chat_template(list(kwargs["raw_prompt"]))
        observation = self.tokenizer(OBSERVATION, add_special_tokens=False)["input_ids"]
        conversation = uuid4().hex  # the same server for all turns
        ids: list[int] = []
        mask: list[int] = []
        log_probs: list[float] = []
        for turn in range(TURNS):
            if turn:
                ids, mask, log_probs = ids + observation, mask + [0] * len(observation), log_probs + [0.0] * len(observation)
            params = {**sampling_params, "seed": int(kwargs[SEED_COLUMN]) + turn, "max_tokens": TURN_TOKENS}
            output = await self.server_manager.generate(
                request_id=conversation, prompt_ids=[*prompt_ids, *ids], sampling_params=params
            )
            ids, mask = [*ids, *output.token_ids], mask + [1] * len(output.token_ids)
            log_probs = [*log_probs, *output.log_probs]
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=ids,
            response_mask=mask,
            response_logprobs=log_probs,
            multi_modal_data={},
            num_turns=2 * TURNS,
            metrics=AgentLoopMetrics(),
            extra_fields={**output.extra_fields, "turn_scores": [], "tool_rewards": []},
        )
