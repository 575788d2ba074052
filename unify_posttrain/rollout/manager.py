"""Rollouts of one turn without an agent loop per row; verl's loops only where a batch needs them.

verl's manager starts workers and a load balancer, makes a task, a request and a scored batch of every single rollout, and tokenises
a prompt as often as it has rollouts. For one turn of text nothing of that is needed: a prompt is tokenised once, a replica gets its
rows together, and what is finished goes to the reward workers in batches. Batches with other loops, with images, or traced ones
start verl's loops, once, when the first of them comes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopManager
from verl.utils import hf_tokenizer
from verl.utils.ray_utils import auto_await

from unify_posttrain.chat import ChatTemplate
from unify_posttrain.rollout import agent_loop
from unify_posttrain.rollout.scoring import Scoring
from unify_posttrain.rollout.single_turn import Answer, Request, assembled, extra_columns, requests, reward_tensor

OURS = f"{agent_loop.__name__}.{agent_loop.SeededSingleTurnAgentLoop.__name__}"


def loops_of_one_turn(path: str | None) -> frozenset[str]:
    """The names under which a file of agent loops has our loop of one turn."""
    if not path:
        return frozenset()
    loops = OmegaConf.load(Path(path))
    return frozenset(str(loop.name) for loop in loops if loop.get("_target_") == OURS)


class RolloutManager(AgentLoopManager):
    """verl's manager of engines, with a direct way for batches of one turn."""

    async def _init_global_load_balancer(self) -> None:
        self.global_load_balancer = None  # started with the loops

    async def _init_agent_loop_workers(self) -> None:
        self.agent_loop_workers: list[Any] = []
        model = self.model_config
        tokenizer = hf_tokenizer(model.path, trust_remote_code=bool(model.get("trust_remote_code", False)))
        if model.get("custom_chat_template"):
            tokenizer.chat_template = model.custom_chat_template
        options = OmegaConf.to_container(OmegaConf.create(self.config.data.get("apply_chat_template_kwargs") or {}))
        self.template, self.pad_id = ChatTemplate(tokenizer, options), tokenizer.pad_token_id
        agent = self.rollout_config.agent
        self.of_one_turn = loops_of_one_turn(agent.get("agent_loop_config_path"))
        self.text_alone = not _has_processor(model)

    @auto_await
    async def generate_sequences(self, prompts: DataProto) -> DataProto:
        """One rollout per row, in their order; rows of agent loops are shared out evenly, so their number has to allow it."""
        if self._direct(prompts):
            return await self._one_turn(prompts)
        if not self.agent_loop_workers:
            await super()._init_global_load_balancer()
            await super()._init_agent_loop_workers()
        return await AgentLoopManager.generate_sequences.__wrapped__(self, prompts)

    def _direct(self, prompts: DataProto) -> bool:
        config, columns = self.rollout_config, prompts.non_tensor_batch
        names = set(columns.get("agent_name", [config.agent.default_agent_loop]))
        traced = OmegaConf.select(config, "trace.backend") is not None
        return (
            names <= self.of_one_turn and self.text_alone and not traced and not config.get("enable_rollout_routing_replay", False)
        )

    async def _one_turn(self, batch: DataProto) -> DataProto:
        config, columns = self.rollout_config, dict(batch.non_tensor_batch)
        asked = requests(columns, self.template.ids, self._sampling(batch), config.prompt_length, config.response_length)
        scoring = None
        if self.reward_loop_worker_handles is not None:
            scoring = Scoring(self.reward_loop_worker_handles, columns, asked, config, self.pad_id)
        began = time.perf_counter()
        seconds = np.zeros(len(asked))
        answers: list[Answer | None] = [None] * len(asked)

        def answered(first: int, found: Sequence[Answer]) -> None:
            rows = range(first, first + len(found))
            seconds[rows.start : rows.stop] = time.perf_counter() - began
            answers[rows.start : rows.stop] = found
            if scoring is not None:
                scoring.add(rows, found)

        await asyncio.gather(*self._calls(asked, answered))
        scored = None if scoring is None else await scoring.results()
        complete = [answer for answer in answers if answer is not None]
        tensors = assembled(asked, complete, config.prompt_length, config.response_length, self.pad_id)
        return self._output(batch, tensors, complete, scored, seconds)

    def _sampling(self, batch: DataProto) -> dict[str, Any]:
        config = self.rollout_config
        source = config.val_kwargs if batch.meta_info.get("validate", False) else config
        return {
            "temperature": source.temperature,
            "top_p": source.top_p,
            "top_k": source.top_k,
            "repetition_penalty": 1.0,
            "logprobs": config.calculate_log_probs,
        }

    def _calls(self, asked: Sequence[Request], answered: Any) -> list[Any]:
        """To every replica its share of the rows, neighbours together: rollouts of one prompt find its beginning in the cache."""
        bounds = np.linspace(0, len(asked), len(self.server_handles) + 1).astype(int)
        shares = [
            (server, int(a), int(b)) for server, a, b in zip(self.server_handles, bounds[:-1], bounds[1:], strict=True) if b > a
        ]
        if self.rollout_config.name == "hf":
            return [self._together(server, asked[a:b], a, answered) for server, a, b in shares]
        return [self._alone(server, asked[row], row, answered) for server, a, b in shares for row in range(a, b)]

    @staticmethod
    async def _together(server: Any, asked: Sequence[Request], first: int, answered: Any) -> None:
        outputs = await server.generate_batch.remote(
            [[*request.prompt, *request.prefix] for request in asked], [request.params for request in asked]
        )
        answered(first, [Answer(ids, log_probs) for ids, log_probs in outputs])

    @staticmethod
    async def _alone(server: Any, request: Request, row: int, answered: Any) -> None:
        """To an engine that batches by itself, as vLLM does."""
        output = await server.generate.remote(
            request_id=uuid4().hex,
            prompt_ids=[*request.prompt, *request.prefix],
            sampling_params=dict(request.params),
            image_data=None,
            video_data=None,
        )
        answered(row, [Answer(output.token_ids, output.log_probs or None, output.extra_fields)])

    def _output(
        self, batch: DataProto, tensors: TensorDict, answers: Sequence[Answer], scored: Sequence[Any] | None, seconds: np.ndarray
    ) -> DataProto:
        columns = {} if scored is not None else dict(batch.non_tensor_batch)
        infos = None if scored is None else [result.get("reward_extra_info", {}) for result in scored]
        columns |= extra_columns(batch.non_tensor_batch["raw_prompt"], answers, infos)
        meta: dict[str, Any] = {}
        if scored is not None and infos is not None:
            tensors["rm_scores"] = reward_tensor([result["reward_score"] for result in scored], tensors)
            meta["reward_extra_keys"] = list(infos[0])
        output = DataProto(batch=tensors, non_tensor_batch=columns, meta_info={})
        metrics = [[{"generate_sequences": each, "tool_calls": 0.0, "num_preempted": -1} for each in seconds.tolist()]]
        output.meta_info = {"timing": self._performance_metrics(metrics, output), **meta}
        return output


def _has_processor(model: Any) -> bool:
    """Whether a model reads images, so that positions are its processor's to compute."""
    folder = Path(str(model.path))
    return any((folder / name).exists() for name in ("preprocessor_config.json", "processor_config.json"))
