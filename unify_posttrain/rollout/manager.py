"""verl's manager of rollouts, with a direct way for single turns: one call per replica and batch, rewards while others decode.

verl builds an agent per rollout, sends its request through a load balancer and its answer, as a padded batch of one row, to a
reward worker. That is what several turns (`environment_loop`) need, and pictures with vLLM. A batch of single turns needs none of
it: prompts are tokenised once, what they show is processed once (`picture_batches`), every replica gets its rows in one message and
sends those that have ended back in portions, and a portion is scored in one message. The processes of the other way (agent loops,
load balancer) are started when a batch first needs them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from verl import DataProto
from verl.experimental.agent_loop.agent_loop import AgentLoopManager
from verl.experimental.agent_loop.utils import resolve_config_path
from verl.utils import hf_processor, hf_tokenizer
from verl.utils.fs import copy_to_local
from verl.utils.ray_utils import auto_await

from unify_posttrain.backend.seams import start_load_balancer
from unify_posttrain.chat import ChatTemplate
from unify_posttrain.experience.ragged import token_counts, zeros
from unify_posttrain.experience.rows import object_column
from unify_posttrain.rollout.agent_loop import (
    NEW_TOKENS_COLUMN,
    PREFIX_COLUMN,
    PREFIX_TRAINED_COLUMN,
    SEED_COLUMN,
    SeededSingleTurnAgentLoop,
    room_for_tokens,
)
from unify_posttrain.rollout.picture_batches import SeeingRows, Sight
from unify_posttrain.rollout.rows import PaddedRows, Requests, Responses

TURNS = 2  # of a single-turn rollout, as verl counts: the user's and the policy's
DIRECT = f"{SeededSingleTurnAgentLoop.__module__}.{SeededSingleTurnAgentLoop.__name__}"


class RolloutManager(AgentLoopManager):
    """verl's manager; `generate_sequences` goes the direct way where the rows allow it."""

    # Started late

    async def _init_global_load_balancer(self) -> None:
        self.global_load_balancer = None

    async def _init_agent_loop_workers(self) -> None:
        self.agent_loop_workers = []

    async def _start_agent_loops(self) -> None:
        if not self.agent_loop_workers:
            # A reward worker in this process is out of their reach; it has a second self that is not.
            handles = self.reward_loop_worker_handles
            self.reward_loop_worker_handles = handles and [_actor(handle) for handle in handles]
            await start_load_balancer(self)
            await super()._init_agent_loop_workers()

    # Which way

    @auto_await
    async def generate_sequences(self, prompts: DataProto) -> DataProto:
        """Rollouts of a batch, in its order; verl's columns and timings, whichever way they take.

        Raises:
            ValueError: a prompt is longer than `data.max_prompt_length`, or a response prefix leaves no room.
        """
        if not self._direct(prompts):
            await self._start_agent_loops()
            return await super().generate_sequences(prompts)
        return await DirectBatch(self, prompts).rollouts()

    def _direct(self, prompts: DataProto) -> bool:
        """Whether every row is a single turn, and nothing is asked for that only an agent loop brings."""
        config = self.rollout_config
        names = set(prompts.non_tensor_batch.get("agent_name", [config.agent.default_agent_loop]))
        return (
            all(self.loops.get(name) == DIRECT for name in names)
            and (self.sight is None or self.sight.takes(prompts.non_tensor_batch["raw_prompt"]))
            and not config.get("enable_rollout_routing_replay", False)
            and config.trace.get("backend") is None
            and all(hasattr(server, "generate_batch") for server in self.server_handles)
        )

    @cached_property
    def loops(self) -> dict[str, str]:
        """Agent loop -> its class."""
        path = self.rollout_config.agent.agent_loop_config_path
        return {entry.name: entry._target_ for entry in OmegaConf.load(resolve_config_path(path))} if path else {}

    @cached_property
    def _folder(self) -> str:
        model = self.model_config
        return copy_to_local(model.get("tokenizer_path") or model.path, use_shm=model.get("use_shm", False))

    @cached_property
    def sight(self) -> Sight | None:
        """Of a model that sees, with the processor that the agent loops have; None for a model of text."""
        processor = hf_processor(self._folder, trust_remote_code=self.model_config.get("trust_remote_code", False))
        if processor is not None and self.model_config.get("custom_chat_template") is not None:
            processor.chat_template = self.model_config.custom_chat_template
        return None if processor is None else Sight(processor, self.config)

    @cached_property
    def tokenizer(self) -> Any:
        """As the agent loops have it."""
        tokenizer = hf_tokenizer(self._folder, trust_remote_code=self.model_config.get("trust_remote_code", False))
        if self.model_config.get("custom_chat_template") is not None:
            tokenizer.chat_template = self.model_config.custom_chat_template
        return tokenizer


class DirectBatch:
    """A batch of single turns on its direct way.

    Args:
        manager: whose servers and reward workers it uses.
        batch: verl's requests, B rows.
    """

    def __init__(self, manager: RolloutManager, batch: DataProto) -> None:
        config, self.batch, self.columns = manager.rollout_config, batch, batch.non_tensor_batch
        self.manager, self.config, self.began = manager, config, time.perf_counter()
        rows, self.validates = len(batch), bool(batch.meta_info.get("validate", False))
        messages, sight = self.columns["raw_prompt"], manager.sight
        seen = None if sight is None else sight.read(messages)
        prompts = list(_tokenised(messages, manager)) if seen is None else [each.ids for each in seen]
        longest = max(map(len, prompts))
        if longest > config.prompt_length:
            raise ValueError(
                f"a prompt has {longest} tokens and data.max_prompt_length is {config.prompt_length}; raise it, or set "
                "data.filter_overlong_prompts=true"
            )
        self.prefixes = [list(map(int, given)) for given in self.columns.get(PREFIX_COLUMN, [()] * rows)]
        trained = self.columns.get(PREFIX_TRAINED_COLUMN, np.zeros(rows, dtype=bool))
        layout = self.prefixes, trained, config.prompt_length, config.response_length, manager.tokenizer.pad_token_id
        self.padded = PaddedRows(prompts, *layout) if seen is None else SeeingRows(sight, seen, *layout)
        self.prompts = self.padded.token_ids
        self.seconds, self.preempted = np.zeros(rows), np.full(rows, -1)
        self.scored: list[dict[str, Any]] = [{}] * rows
        self.fields: dict[str, np.ndarray] = {}
        self.scoring: list[asyncio.Task[None]] = []

    async def rollouts(self) -> DataProto:
        """Generate and score."""
        servers, requests = self.manager.server_handles, self._requests()
        bounds = np.linspace(0, len(requests), len(servers) + 1).astype(int).tolist()
        parts = [part for part in zip(servers, bounds, bounds[1:], strict=False) if part[2] > part[1]]
        await asyncio.gather(*(self._generate(server, requests.part(start, end), start) for server, start, end in parts))
        await asyncio.gather(*self.scoring)
        return self._output()

    def _requests(self) -> Requests:
        config, columns, width = self.config, self.columns, self.config.response_length
        source = config.val_kwargs if self.validates else config
        limits = columns.get(NEW_TOKENS_COLUMN, np.full(len(self.prompts), width))
        joined = [
            np.array([*prompt, *prefix], dtype=np.int32) if prefix else prompt
            for prompt, prefix in zip(self.prompts, self.prefixes, strict=True)
        ]
        return Requests(
            prompts=joined,
            max_tokens=[room_for_tokens(len(prefix), width, limit) for prefix, limit in zip(self.prefixes, limits, strict=True)],
            seeds=[int(seed) for seed in columns[SEED_COLUMN]] if SEED_COLUMN in columns else None,
            sampling={
                "temperature": source.temperature,
                "top_p": source.top_p,
                "top_k": source.top_k,
                "repetition_penalty": 1.0,
                "logprobs": config.calculate_log_probs,
                **self.padded.sampling,
            },
            portion=max(1, -(-len(joined) // config.custom["portions"])),
            pictures=self.padded.shown,
        )

    async def _generate(self, server: Any, requests: Requests, first: int) -> None:
        """Rows from `first` on, by one server."""
        async for reference in server.generate_batch.remote(requests):
            responses: Responses = await reference
            rows = torch.from_numpy(responses.rows + first)
            self.padded.fill(responses, rows)
            self.seconds[rows] = time.perf_counter() - self.began
            if responses.preempted is not None:
                self.preempted[rows] = responses.preempted
            for name, value in responses.fields.items():
                self.fields.setdefault(name, np.full(len(self.seconds), None, dtype=object))[rows] = value
            workers = self.manager.reward_loop_worker_handles
            # Rows that end together (all at their limit) are more than one worker's share, and long ones than one message.
            most = min(-(-len(self.prompts) // len(workers)), self.padded.rows_of_a_message) if workers else 1
            for share in rows.split(most) if workers else ():
                worker = workers[len(self.scoring) % len(workers)]
                self.scoring.append(asyncio.ensure_future(self._score(worker, share, responses.fields)))

    async def _score(self, worker: Any, rows: torch.Tensor, fields: dict[str, Any]) -> None:
        """One portion, by one reward worker; what verl's agent loops tell of a row is told here too."""
        own = getattr(worker, "scores", None)  # of a worker in this process; handles of Ray's have what their actors have
        asked = (own or worker.compute_score_batch.remote)(self._to_score(rows, fields))  # not held here until it is answered
        for row, found in zip(rows.tolist(), await asked, strict=True):
            self.scored[row] = found

    def _to_score(self, rows: torch.Tensor, fields: dict[str, Any]) -> DataProto:
        tensors = self.padded.to_score(rows)
        columns = {name: column[rows.numpy()] for name, column in self.columns.items() if name != "agent_name"}
        columns["__num_turns__"] = np.full(len(rows), TURNS)
        told = [{**fields, "turn_scores": [], "tool_rewards": [], "raw_prompt": prompt} for prompt in columns["raw_prompt"]]
        columns["tool_extra_fields"] = object_column(told)
        return DataProto(batch=TensorDict(tensors, batch_size=len(rows)), non_tensor_batch=columns)

    def _output(self) -> DataProto:
        rows, tensors = len(self.prompts), self.padded.tensors(self.config.calculate_log_probs)
        columns: dict[str, np.ndarray] = {"__num_turns__": np.full(rows, TURNS, dtype=np.int32)}
        meta_info: dict[str, Any] = {}
        if self.manager.reward_loop_worker_handles is None:
            columns |= self.columns
        else:
            last = token_counts(tensors["attention_mask"][:, self.config.prompt_length :]) - 1
            scores = torch.tensor([found["reward_score"] for found in self.scored], dtype=torch.float32)
            tensors["rm_scores"] = zeros(tensors["responses"].shape, torch.float32)
            tensors["rm_scores"][torch.arange(rows), last] = scores
            infos = [found.get("reward_extra_info", {}) for found in self.scored]
            meta_info["reward_extra_keys"] = list(infos[0])
            columns |= {name: np.array([info[name] for info in infos]) for name in infos[0]}
            columns["reward_extra_info"] = object_column(infos)
        absent = np.full(rows, None, dtype=object)
        columns |= {name: absent.copy() for name in ("min_global_steps", "max_global_steps", "extras")} | self.fields
        columns |= {name: object_column([[] for _ in range(rows)]) for name in ("turn_scores", "tool_rewards")}
        columns["multi_modal_inputs"] = object_column([dict(shown) for shown in self.padded.shown or [{}] * rows])
        columns["raw_prompt"] = self.columns["raw_prompt"]
        output = DataProto(batch=TensorDict(tensors, batch_size=rows), non_tensor_batch=columns)
        measured = [
            {"generate_sequences": seconds, "tool_calls": 0.0, "compute_score": 0.0, "num_preempted": preempted}
            for seconds, preempted in zip(self.seconds.tolist(), self.preempted.tolist(), strict=True)
        ]
        output.meta_info = {"timing": self.manager._performance_metrics([measured], output), **meta_info}
        return output


def _actor(handle: Any) -> Any:
    as_actor = getattr(handle, "as_actor", None)
    return handle if as_actor is None else as_actor()


def _tokenised(messages: np.ndarray, manager: RolloutManager) -> Iterator[np.ndarray]:
    """Token ids per row; the rows of a prompt hold the same messages, which are tokenised once and share the result."""
    known: dict[int, np.ndarray] = {}
    template = ChatTemplate(manager.tokenizer, dict(manager.config.data.get("apply_chat_template_kwargs") or {}))
    for each in messages:
        if id(each) not in known:  # all of them live as long as `messages`: no other object has the same id meanwhile
            known[id(each)] = np.array(template.ids(list(each)), dtype=np.int32)
        yield known[id(each)]
