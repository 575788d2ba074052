"""A transformers generation server: a Ray actor that decodes a batch of rows, or batches concurrent requests. For laptops and
tests, not for throughput."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from unify_posttrain import cpu_compat
from unify_posttrain.rollout.decoding import Finished
from unify_posttrain.rollout.lanes import Lanes
from unify_posttrain.rollout.pictures import Inputs, picture_inputs, picture_key, picture_keys
from unify_posttrain.rollout.rows import Requests, Responses
from unify_posttrain.rollout.sampling import SamplingParams

if TYPE_CHECKING:
    from verl.workers.rollout.replica import TokenOutput

logger = logging.getLogger(__name__)


@dataclass
class _Request:
    prompt_ids: list[int]
    params: SamplingParams
    want_log_probs: bool
    pictures: Inputs
    answer: asyncio.Future

    @property
    def place(self) -> tuple[Any, ...]:
        return _place(self.prompt_ids, self.params, picture_key(self.pictures))


class HFServer:
    """Holds its own copy of the model; weights arrive from the trainer and are checked for completeness.

    Args:
        model_path: folder of the model, for its architecture, tokens and generation settings.
        pad_id, eos_ids: token ids.
        response_length: limit where a request sets none.
        max_context: prompt and response together.
        max_batch: rows decoded at once.
        gather_seconds: a batch starts when no request has arrived for this long.
        dtype: of the weights.
        override_config: settings of the model configuration, e.g. attn_implementation.
        trust_remote_code: run code that comes with the folder.
        lanes: processes that decode a batch, a thread each; where there is no CUDA.
    """

    def __init__(
        self,
        model_path: str,
        pad_id: int,
        eos_ids: list[int],
        response_length: int,
        max_context: int,
        max_batch: int,
        gather_seconds: float,
        dtype: str,
        override_config: Mapping[str, Any],
        trust_remote_code: bool = False,
        lanes: int = 1,
    ) -> None:
        cpu_compat.install()
        # One thread computes, from the beginning on. OpenMP gives each that does threads of its own. As soon as those of a process
        # are more than the cores, they go to sleep between any two operations, and decoding takes half as long again.
        self.pool = ThreadPoolExecutor(max_workers=1)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code, **override_config)
        sees = type(config) in AutoModelForImageTextToText._model_mapping
        chosen = AutoModelForImageTextToText if sees else AutoModelForCausalLM
        options = {"dtype": getattr(torch, dtype), "trust_remote_code": trust_remote_code}
        model = self.pool.submit(chosen.from_config, config, **options).result()
        self.model = model.to(self.device).eval()
        self.lanes = Lanes(self.model, lanes)
        self.model_path, self.trust_remote_code, self.sees = model_path, trust_remote_code, sees
        self.pad_id, self.eos_ids = pad_id, eos_ids
        self.response_length, self.max_context = response_length, max_context
        self.max_batch, self.gather_seconds = max_batch, gather_seconds
        self.loaded = False
        self.waiting: list[_Request] = []
        self.batcher: asyncio.Task | None = None

    # Weights

    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> int:
        """Copy a full set of weights into the model. Names may be those of a checkpoint (as verl sends them) or of the module.

        Raises:
            ValueError: a parameter is missing (tied ones excepted), unknown, or of another shape. Nothing is half loaded: names
                and shapes are checked first.
        """
        own = dict(self.model.named_parameters(remove_duplicate=False))
        own.update(self.model.named_buffers())
        # Persistent tensors only: rotary frequencies and the like are computed, not sent.
        own = {name: own[name] for name in self.model.state_dict() if name in own}
        named = {self._module_name(name, own): tensor for name, tensor in weights.items()}
        unexpected = sorted(set(named) - set(own))
        tied = set(getattr(self.model, "_tied_weights_keys", None) or ())
        missing = sorted(name for name in set(own) - set(named) if name not in tied)
        wrong = sorted(name for name in set(own) & set(named) if own[name].shape != named[name].shape)
        if unexpected or missing or wrong:
            raise ValueError(
                f"weight update does not fit the rollout model: missing {missing[:5]}, unexpected {unexpected[:5]}, "
                f"wrong shape {wrong[:5]}"
            )
        self.pool.submit(_copy, [(own[name], tensor) for name, tensor in named.items()]).result()
        self.loaded = True
        return len(named)

    def _module_name(self, name: str, own: Mapping[str, torch.Tensor]) -> str:
        if name in own:
            return name
        for pattern, replacement in (getattr(self.model, "_checkpoint_conversion_mapping", None) or {}).items():
            renamed, changed = re.subn(pattern, replacement, name)
            if changed:
                return renamed
        return name

    # Generation

    @cached_property
    def processor(self) -> Any:
        """Of a model that sees, for single requests, which bring pictures: batches bring what the driver made of them. Without it
        a server imports nothing of verl, and is ready sooner by a third."""
        if not self.sees:
            return None
        from verl.utils import hf_processor

        return hf_processor(self.model_path, trust_remote_code=self.trust_remote_code, use_fast=True)

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
    ) -> TokenOutput:
        """One request; batched with those that wait beside it. Same signature as verl's vLLM server.

        Raises:
            RuntimeError: no weights have been loaded yet.
            ValueError: a video, pictures for a model that sees none, or a prompt that leaves no room for a token.
        """
        if video_data:
            raise ValueError("rollout.name=hf generates from text and pictures; use rollout.name=vllm for videos")
        if image_data and self.processor is None:
            raise ValueError("rollout.name=hf: pictures for a model that has no processor for them; take a multimodal model")
        params, loop = self._params(prompt_ids, sampling_params), asyncio.get_running_loop()
        pictures: Inputs = {}
        if image_data:
            pictures = await loop.run_in_executor(self.pool, picture_inputs, self.processor, image_data)
        request = _Request(prompt_ids, params, bool(sampling_params.get("logprobs")), pictures, loop.create_future())
        self.waiting.append(request)
        if self.batcher is None or self.batcher.done():
            self.batcher = asyncio.create_task(self._serve())
        return await request.answer

    async def generate_batch(self, requests: Requests) -> AsyncIterator[Responses]:
        """All rows of a batch, sent back in portions as they end.

        Raises:
            RuntimeError, ValueError: see :meth:`generate`.
        """
        loop, want_log_probs = asyncio.get_running_loop(), bool(requests.sampling.get("logprobs"))
        prompts = [prompt.tolist() for prompt in requests.prompts]
        params = [self._params(prompt, requests.params(row)) for row, prompt in enumerate(prompts)]
        shown: Sequence[Inputs] = requests.pictures or [{}] * len(prompts)
        keys = picture_keys(shown)
        order = sorted(range(len(prompts)), key=lambda row: _place(prompts[row], params[row], keys[row]))
        for start in range(0, len(order), self.max_batch):
            rows = order[start : start + self.max_batch]
            given = [prompts[row] for row in rows], [params[row] for row in rows]
            parts = self.lanes.decode(*given, self.eos_ids, self.pad_id, requests.portion, [shown[row] for row in rows])
            answers = (_responses(part, np.array(rows), want_log_probs) for part in parts)
            # The loop answers control calls while the pool's one thread decodes, and selects what has ended.
            while (answer := await loop.run_in_executor(self.pool, next, answers, None)) is not None:
                yield answer

    def _params(self, prompt_ids: list[int], sampling_params: Mapping[str, Any]) -> SamplingParams:
        if not self.loaded:
            raise RuntimeError("rollout.name=hf: generation asked for before the first weight update")
        room = self.max_context - len(prompt_ids)
        if room < 1:
            raise ValueError(f"prompt of {len(prompt_ids)} tokens leaves no room in a context of {self.max_context}")
        return SamplingParams.from_request(sampling_params, min(self.response_length, room))

    async def _serve(self) -> None:
        """Answer everything that waits, in batches, until nothing does."""
        loop = asyncio.get_running_loop()
        while self.waiting:
            seen = -1
            while seen != len(self.waiting):  # until it is quiet
                seen = len(self.waiting)
                await asyncio.sleep(self.gather_seconds)
            self.waiting.sort(key=lambda request: request.place)
            batch, self.waiting = self.waiting[: self.max_batch], self.waiting[self.max_batch :]
            try:
                outputs = await loop.run_in_executor(self.pool, self._decode, batch)
            except Exception as error:  # every waiting caller must hear of it, whatever it is
                logger.exception("generation failed")
                for request in batch:
                    request.answer.set_exception(error)
                continue
            for request, output in zip(batch, outputs, strict=True):
                if not request.answer.done():
                    request.answer.set_result(output)

    def _decode(self, batch: list[_Request]) -> list[TokenOutput]:
        # Whole batches need nothing of verl; without it, the process of a server is ready sooner by a third.
        from verl.workers.rollout.replica import TokenOutput

        prompts, params = [request.prompt_ids for request in batch], [request.params for request in batch]
        decoded = self.lanes.decode_batch(prompts, params, self.eos_ids, self.pad_id, [request.pictures for request in batch])
        return [
            TokenOutput(
                token_ids=each.token_ids,
                log_probs=each.log_probs.tolist() if request.want_log_probs else None,
                stop_reason="completed",
            )
            for request, each in zip(batch, decoded, strict=True)
        ]

    # Control methods of verl's replicas: the model shares no memory with the trainer, so there is nothing to free.

    async def wake_up(self) -> None:
        return None

    async def sleep(self) -> None:
        return None

    async def clear_kv_cache(self) -> None:
        return None

    async def release_kv_cache(self) -> None:
        return None

    async def resume_kv_cache(self) -> None:
        return None

    async def abort_all_requests(self, **_: Any) -> None:
        return None

    async def resume_generation(self) -> None:
        return None

    async def start_profile(self, **_: Any) -> None:
        return None

    async def stop_profile(self, **_: Any) -> None:
        return None


@torch.no_grad()
def _copy(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    for own, given in pairs:
        own.copy_(given)


def _place(prompt_ids: list[int], params: SamplingParams, shown: bytes) -> tuple[Any, ...]:
    """Where a row is decoded among others. The order of arrival is a matter of chance; this one must not be, for runs to repeat."""
    return len(prompt_ids), prompt_ids, shown, params.seed or 0


def _responses(part: Finished, rows: np.ndarray, want_log_probs: bool) -> Responses:
    used = torch.arange(part.token_ids.shape[1]) < part.lengths.unsqueeze(-1)
    log_probs = part.log_probs[used].numpy() if want_log_probs else None
    return Responses(rows[part.rows.numpy()], part.lengths.numpy(), part.token_ids[used].int().numpy(), log_probs)
