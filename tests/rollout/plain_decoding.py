"""Decoding as transformers' own `generate` does it, with every row computed by itself to its end: what ours is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unify_posttrain.rollout.sampling import SamplingParams


class DrawnByDefinition(LogitsProcessor):
    """Leaves of every row's logits the token that inverts the cumulative distribution at its own uniform number."""

    def __init__(self, params: Sequence[SamplingParams]) -> None:
        self.params, self.log_probs = params, []
        self.uniforms = [np.random.default_rng(each.seed).random(each.max_tokens) for each in params]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step, kept = len(self.log_probs), torch.full_like(scores, float("-inf"))
        chosen = []
        for row, each in enumerate(self.params):
            log_probs = torch.log_softmax(truncated(scores[row].float() / (each.temperature or 1.0), each), dim=-1)
            mass = log_probs.double().exp().cumsum(dim=-1)
            if step >= each.max_tokens:
                token = 0  # beyond the row's own limit; cut off afterwards
            elif each.temperature == 0:
                token = int(scores[row].argmax())
            else:
                number = torch.tensor([self.uniforms[row][step]], dtype=torch.float64) * mass[-1]
                token = min(int(torch.searchsorted(mass, number, right=True)), len(mass) - 1)
            kept[row, token] = 0.0
            chosen.append(float(log_probs[token]))
        self.log_probs.append(chosen)
        return kept


def truncated(logits: Tensor, params: SamplingParams) -> Tensor:
    """The k most likely tokens, then the fewest of them that hold the mass p."""
    order = logits.argsort(descending=True)
    if params.top_k > 0:
        logits = logits.masked_fill(logits < logits[order[min(params.top_k, len(logits)) - 1]], float("-inf"))
    if params.top_p < 1:
        ordered = logits[order].softmax(dim=-1)
        logits = logits.clone()
        logits[order[ordered.cumsum(dim=-1) - ordered >= params.top_p]] = float("-inf")
    return logits


def decode_plainly(
    model: Any, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams], eos_ids: Sequence[int], pad_id: int
) -> list[tuple[list[int], list[float]]]:
    """Tokens and log-probabilities of every prompt's response."""
    width, processor = max(map(len, prompts)), DrawnByDefinition(params)
    ids = torch.tensor([[pad_id] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=max(each.max_tokens for each in params), eos_token_id=list(eos_ids), pad_token_id=pad_id
    )
    with torch.inference_mode():
        generated = model.generate(
            input_ids=ids, attention_mask=mask, logits_processor=LogitsProcessorList([processor]), generation_config=settings
        )[:, width:].tolist()
    answers = []
    for row, each in enumerate(params):
        tokens = generated[row][: each.max_tokens]
        length = next((i + 1 for i, token in enumerate(tokens) if token in eos_ids), len(tokens))
        answers.append((tokens[:length], [step[row] for step in processor.log_probs[:length]]))
    return answers
