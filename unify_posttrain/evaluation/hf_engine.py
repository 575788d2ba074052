"""Generation with transformers: the decoding of the trainer's engine (rollout.name=hf) without its server."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from unify_posttrain.evaluation.requests import EngineSettings, Output, Request
from unify_posttrain.rollout.decoding import end_tokens
from unify_posttrain.rollout.lanes import Lanes
from unify_posttrain.rollout.pictures import banned_bias, picture_inputs
from unify_posttrain.rollout.sampling import SamplingParams
from unify_posttrain.untrusted.loading import flaws_of
from unify_posttrain.untrusted.weights import first_not_finite


class HFEngine:
    """A causal language model of transformers on one device, which may see.

    Raises:
        ValueError: the folder cannot be loaded as one, lacks weights of the model, or holds some that are no numbers.
    """

    def __init__(self, folder: Path, settings: EngineSettings) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        try:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **settings.override_config)
            sees = type(config) in AutoModelForImageTextToText._model_mapping
            model, loading = (AutoModelForImageTextToText if sees else AutoModelForCausalLM).from_pretrained(
                folder,
                config=config,
                dtype=getattr(torch, settings.dtype),
                trust_remote_code=False,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, with the whole name
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False, use_fast=True) if sees else None
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise ValueError(f"model {folder} cannot be loaded as a causal language model: {error}") from error
        flaws = flaws_of(loading)
        if flaws:  # transformers only warns, and draws what is missing at random
            raise ValueError(f"model {folder}: its weights do not fit its config.json: {flaws}; get the model again")
        bad = first_not_finite(model.named_parameters())
        if bad is not None:
            raise ValueError(f"model {folder}: {bad} holds NaN or infinite numbers in {settings.dtype}; take an earlier checkpoint")
        self.model: Any = model.to(device).eval()
        self.lanes: Any = Lanes(self.model, torch.get_num_threads())
        self.banned = banned_bias(tokenizer) if sees else {}
        self.eos_ids = end_tokens(str(folder), tokenizer.eos_token_id)
        if not self.eos_ids:
            raise ValueError(f"model {folder} has no end token; add eos_token to its tokenizer")
        self.pad_id = self.eos_ids[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        self.max_context, self.max_batch = settings.max_context, settings.max_batch

    def generate(self, requests: Sequence[Request]) -> list[Output]:
        """Responses in batches of at most `max_batch`, in the order given.

        Raises:
            ValueError: a prompt leaves no room for a token.
        """
        outputs: list[Output] = []
        for start in range(0, len(requests), self.max_batch):
            outputs += self._decode(requests[start : start + self.max_batch])
        return outputs

    def log_probs(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[list[float]]:
        """Row by row: no row sees another's padding, and memory for the logits is that of one."""
        found = []
        with torch.inference_mode():
            for prompt, target in pairs:
                ids = torch.tensor([[*prompt, *target]], device=self.model.device)
                logits = self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]  # (target, V)
                log_probs = logits.float().log_softmax(dim=-1).gather(1, ids[0, len(prompt) :, None])
                found.append(log_probs[:, 0].tolist())
        return found

    def _decode(self, batch: Sequence[Request]) -> list[Output]:
        params = [self._params(request) for request in batch]
        prompts = [request.prompt_ids for request in batch]
        pictures = [picture_inputs(self.processor, request.images) for request in batch]
        decoded = self.lanes.decode_batch(prompts, params, self.eos_ids, self.pad_id, pictures)
        return [Output(each.token_ids, truncated=each.token_ids[-1] not in self.eos_ids) for each in decoded]

    def _params(self, request: Request) -> SamplingParams:
        room = self.max_context - len(request.prompt_ids)
        if room < 1:
            raise ValueError(
                f"prompt of {len(request.prompt_ids)} tokens leaves no room in max_context={self.max_context}; raise it"
            )
        sampling = {
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            **({"logit_bias": self.banned} if self.banned else {}),
        }
        return SamplingParams.from_request(sampling, room)

    def close(self) -> None:
        self.lanes.close()
        self.lanes = self.model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
