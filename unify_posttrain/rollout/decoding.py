"""Decoding a batch of prompts with transformers: used by the trainer's engine and by evaluation, so that both generate alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, LogitsProcessorList, PreTrainedModel

from unify_posttrain.rollout.sampling import SamplingParams, SeededSampler


@dataclass(frozen=True)
class Decoded:
    """One response.

    Attributes:
        token_ids: sampled tokens; an end token is the last one, if there is any.
        log_probs: (len(token_ids),) of the distribution that each token was drawn from.
    """

    token_ids: list[int]
    log_probs: Tensor


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    eos_ids: Sequence[int],
    pad_id: int,
) -> list[Decoded]:
    """Generate one response per prompt, all at once; B prompts, padded on the left.

    Args:
        model: on its device, in eval mode.
        prompts: (B,) token ids.
        params: (B,) one per prompt.
        eos_ids: tokens that end a response; the first one fills rows that have reached their own limit.
        pad_id: filler of shorter prompts, masked.
    """
    width = max(len(prompt) for prompt in prompts)
    input_ids = torch.full((len(prompts), width), pad_id)
    attention_mask = torch.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        attention_mask[row, width - len(prompt) :] = 1
    sampler = SeededSampler(params, eos_ids[0], model.device)
    generated = model.generate(
        input_ids=input_ids.to(model.device),
        attention_mask=attention_mask.to(model.device),
        logits_processor=LogitsProcessorList([sampler]),
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=int(sampler.max_tokens.max()),
            eos_token_id=list(eos_ids),
            pad_token_id=pad_id,
        ),
    )[:, width:].cpu()
    log_probs = sampler.log_probs.cpu()
    return [_response(generated[row], log_probs[row], params[row].max_tokens, eos_ids) for row in range(len(prompts))]


def _response(tokens: Tensor, log_probs: Tensor, max_tokens: int, eos_ids: Sequence[int]) -> Decoded:
    ids = tokens[:max_tokens].tolist()
    length = next((position + 1 for position, token in enumerate(ids) if token in eos_ids), len(ids))
    return Decoded(ids[:length], log_probs[:length])


def end_tokens(folder: str, tokenizer_eos: int | None, trust_remote_code: bool = False) -> list[int]:
    """The tokenizer's end token first, then the others that the model's generation settings stop at."""
    try:
        configured = GenerationConfig.from_pretrained(folder).eos_token_id
    except OSError:
        configured = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).eos_token_id
    several = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in (tokenizer_eos, *several) if token is not None))
