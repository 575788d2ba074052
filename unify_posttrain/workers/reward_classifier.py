"""Serves a reward classifier beside the trainer: the reward function, the Ray actor behind it, and the reward manager before it.

    reward.reward_manager          PromptRewardManager adds the prompt's text, which verl's own managers keep from reward functions
    reward.custom_reward_function  compute_score makes the text, asks for its logit, returns {score, raw_reward}
    ClassifierServer               one per run; started by the first reward worker that asks, ends with the job

With reward.reward_model.enable=true verl serves the same classifier with vLLM on the GPUs of the trainer (or its own), and
`compute_score` asks that instead; text, formula and checks stay the same. conf/task/tldr.yaml has all keys.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import aiohttp
import ray
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager

from unify_posttrain.experience.rows import object_column
from unify_posttrain.rewards.classifier import NODE, ClassifierSettings, RewardClassifier, RewardFormula, read_options

logger = logging.getLogger(__name__)

PROMPT, EOS, ROW = "prompt_text", "eos_text", "row_id"  # what PromptRewardManager adds to extra_info
ATTEMPTS = 5  # requests to verl's router, 1, 2, 4, 8 s apart: under load a connection may be refused


class PromptRewardManager(NaiveRewardManager):
    """verl's naive manager; the reward function finds in extra_info `prompt_text` (contents of the prompt's messages, joined),
    `eos_text` (the end token if the response ended with it, else nothing) and, of rollouts, `row_id`."""

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        row = data[0]
        columns = row.non_tensor_batch
        if "raw_prompt" not in columns:
            raise ValueError("the reward manager got no column raw_prompt; set data.return_raw_chat=true")
        extra_info = {
            **(columns.get("extra_info") or {}),
            PROMPT: prompt_text(columns["raw_prompt"]),
            EOS: self._eos_text(row),
            ROW: columns.get("row_id"),
        }
        own = {**data.non_tensor_batch, "extra_info": object_column([extra_info])}  # a copy: a prompt's rollouts share theirs
        return await super().run_single(DataProto(batch=data.batch, non_tensor_batch=own, meta_info=data.meta_info))

    def _eos_text(self, row: Any) -> str:
        responses = row.batch["responses"]
        length = int(row.batch["attention_mask"][-responses.shape[-1] :].sum())
        ended = length > 0 and int(responses[length - 1]) == self.tokenizer.eos_token_id
        return self.tokenizer.eos_token if ended else ""


def prompt_text(messages: Any) -> str:
    """Contents of a prompt's messages, joined without anything in between: what a raw-text prompt template renders.

    Raises:
        ValueError: a message with other content than text.
    """
    contents = [message["content"] for message in messages]
    if not all(isinstance(content, str) for content in contents):
        raise ValueError(f"the reward classifier reads text, but a prompt holds {str(contents)[:80]!r}")
    return "".join(contents)


async def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: Mapping[str, Any],
    reward_router_address: str | None = None,
    reward_model_tokenizer: Any = None,
    **options: Any,
) -> dict[str, float]:
    """Reward function of verl's signature. `options` are reward.custom_reward_function.reward_kwargs.

    Args:
        data_source, solution_str, extra_info: the row; extra_info comes through `PromptRewardManager`.
        ground_truth, reward_model_tokenizer: not read.
        reward_router_address: of verl's reward-model worker, if that serves the classifier.

    Returns:
        score: see `unify_posttrain.rewards.classifier`; raw_reward: the logit.

    Raises:
        ValueError: no prompt text in extra_info, or a logit that is not a finite number; names the row.
        RuntimeError: the classifier did not start, died, or failed on a text; holds its own error.
    """
    settings, formula = _parsed(tuple(sorted(options.items())))
    if PROMPT not in extra_info:
        raise ValueError(
            "the reward classifier needs the prompt's text: set reward.reward_manager.source=importlib, "
            f"reward.reward_manager.name=PromptRewardManager, reward.reward_manager.module.path=pkg://{__name__}"
        )
    text = formula.text(extra_info[PROMPT], solution_str, extra_info[EOS])
    if reward_router_address is None:
        logit = await _ask_server(settings, text)
    else:
        logit = await _ask_router(reward_router_address, settings.model_path, text)
    if not math.isfinite(logit):
        raise ValueError(
            f"the reward classifier {settings.model_path} gave {logit} for training row {extra_info[ROW]} of data_source "
            f"{data_source!r}, text ending in {text[-80:]!r}; if it is half precision, set {NODE}.dtype=float32"
        )
    return {"score": formula.score(logit), "raw_reward": logit}


@lru_cache
def _parsed(options: tuple[tuple[str, Any], ...]) -> tuple[ClassifierSettings, RewardFormula]:
    return read_options(dict(options))


async def _ask_server(settings: ClassifierSettings, text: str) -> float:
    try:
        return await _server(settings, ray.get_runtime_context().get_job_id()).logit.remote(text)
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the reward classifier {settings.model_path} did not start, died, or failed on a text: {error}"
        ) from error


@lru_cache  # holds the handle: Ray ends an actor that nobody holds
def _server(settings: ClassifierSettings, job: str) -> Any:
    """The run's server. Reward workers race for it and all get the one that came first; the name tells runs and settings apart."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode()).hexdigest()[:8]
    options = {"name": f"unify_reward_classifier_{job}_{digest}", "get_if_exists": True, "num_cpus": 0}
    if settings.device != "cpu":
        # verl's placement groups hold all GPUs, so none can be asked for; Ray hides them from an actor that asks for none.
        options["runtime_env"] = {"env_vars": {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1"}}
    return ray.remote(ClassifierServer).options(**options).remote(asdict(settings))


async def _ask_router(address: str, model: str, text: str) -> float:
    """One logit from verl's reward-model worker (vLLM's /classify, without activation)."""
    payload = {"model": model, "input": text, "use_activation": False}
    for attempt in range(ATTEMPTS):
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None)) as session,
                session.post(f"http://{address}/classify", json=payload) as response,
            ):
                if response.status >= 400:
                    body = (await response.text())[:500]
                    raise RuntimeError(f"verl's reward-model worker at {address} answered {response.status}: {body}")
                return float((await response.json())["data"][-1]["probs"][-1])
        except aiohttp.ClientConnectionError as error:
            if attempt == ATTEMPTS - 1:
                raise RuntimeError(f"verl's reward-model worker at {address} does not answer: {error}") from error
            await asyncio.sleep(2**attempt)
    raise AssertionError("unreachable: the last attempt returns or raises")


class ClassifierServer:
    """Ray actor: answers concurrent requests in batches."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.classifier = RewardClassifier(ClassifierSettings(**settings))
        self.waiting: list[tuple[str, asyncio.Future]] = []
        self.batcher: asyncio.Task | None = None
        self.pool = ThreadPoolExecutor(max_workers=1)

    async def logit(self, text: str) -> float:
        """Raw logit of one text; batched with those that wait beside it."""
        answer = asyncio.get_running_loop().create_future()
        self.waiting.append((text, answer))
        if self.batcher is None or self.batcher.done():
            self.batcher = asyncio.create_task(self._serve())
        return await answer

    async def _serve(self) -> None:
        """Answer everything that waits, in batches, until nothing does."""
        loop, settings = asyncio.get_running_loop(), self.classifier.settings
        while self.waiting:
            seen = -1
            while seen != len(self.waiting) < settings.batch_size:  # until it is quiet, or a batch is full
                seen = len(self.waiting)
                await asyncio.sleep(settings.gather_seconds)
            # The order of arrival is a matter of chance; what shares a batch must not be, for runs to repeat.
            self.waiting.sort(key=lambda request: (len(request[0]), request[0]))
            batch, self.waiting = self.waiting[: settings.batch_size], self.waiting[settings.batch_size :]
            try:
                values = await loop.run_in_executor(self.pool, self.classifier.logits, [text for text, _ in batch])
            except Exception as error:  # every waiting caller must hear of it, whatever it is
                logger.exception("the reward classifier failed on a batch of %d texts", len(batch))
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), value in zip(batch, values, strict=True):
                if not answer.done():
                    answer.set_result(value)
