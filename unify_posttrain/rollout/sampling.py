"""Sampling by request: each row of a batch has its own temperature, truncation, length and random numbers.

`transformers` decodes (cache, positions, stopping); this logits processor decides. It draws every token by inverting the
cumulative distribution at a uniform number that belongs to (request seed, position), so a request's tokens depend on its seed
and its logits and not on the requests that happen to share its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

# Keys of a sampling-parameter dictionary that verl or an agent loop sends and that need no action here.
_IGNORED = {"logprobs", "include_stop_str_in_output"}


@dataclass(frozen=True)
class SamplingParams:
    """Sampling parameters of one request.

    Attributes:
        temperature: 0 takes the most likely token.
        top_p: nucleus mass in (0, 1].
        top_k: -1 or 0 for all tokens.
        max_tokens: response length limit.
        seed: of this request's draws; None draws a fresh one.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None

    @classmethod
    def from_request(cls, params: Mapping[str, Any], max_tokens: int) -> SamplingParams:
        """From verl's dictionary; `max_tokens` is the limit where the request sets none, and never exceeded.

        Raises:
            ValueError: a parameter that this engine does not implement, or a value out of range.
        """
        params = {key: value for key, value in params.items() if key not in _IGNORED}
        limit = params.pop("max_tokens", params.pop("max_new_tokens", None))
        built = cls(
            temperature=float(params.pop("temperature", 1.0)),
            top_p=float(params.pop("top_p", 1.0)),
            top_k=int(params.pop("top_k", -1)),
            max_tokens=max_tokens if limit is None else min(int(limit), max_tokens),
            seed=params.pop("seed", None),
        )
        if params.pop("repetition_penalty", 1.0) != 1.0:
            raise ValueError("rollout.name=hf does not implement repetition_penalty; use 1.0, or rollout.name=vllm")
        unknown = sorted(key for key, value in params.items() if value not in (None, [], False))
        if unknown:
            raise ValueError(f"rollout.name=hf does not implement sampling parameters {unknown}; use rollout.name=vllm")
        if built.temperature < 0 or not 0 < built.top_p <= 1:
            raise ValueError(f"temperature={built.temperature} must be >= 0 and top_p={built.top_p} in (0, 1]")
        return built


class SeededSampler(LogitsProcessor):
    """Replaces the logits of each row by a point mass on the sampled token, for greedy decoding to pick up.

    Args:
        params: one per row (B).
        eos_id: emitted once a row has reached its own `max_tokens`, so that the batch may end.
        device: of the logits.

    `log_probs` (B, steps) after decoding holds log π of each chosen token under the tempered, truncated distribution that it was
    drawn from; greedy rows report the untempered one.
    """

    def __init__(self, params: Sequence[SamplingParams], eos_id: int, device: torch.device) -> None:
        self.params, self.eos_id = params, eos_id
        longest = max(p.max_tokens for p in params)
        uniforms = np.stack([np.random.default_rng(p.seed).random(longest) for p in params])
        self.uniforms = torch.from_numpy(uniforms).to(device)  # (B, steps) float64

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=torch.float32).unsqueeze(-1)

        self.greedy = torch.tensor([p.temperature == 0 for p in params], device=device)
        self.temperature = column([p.temperature or 1.0 for p in params])
        self.top_p, self.top_k = column([p.top_p for p in params]), [p.top_k for p in params]
        self.max_tokens = torch.tensor([p.max_tokens for p in params], device=device)
        self._chosen: list[Tensor] = []

    @property
    def log_probs(self) -> Tensor:
        return torch.stack(self._chosen, dim=-1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = len(self._chosen)
        log_probs = torch.log_softmax(self._truncate(scores.float() / self.temperature), dim=-1)
        # float64: a cumulative sum over a vocabulary of 150k in float32 would lose the tail.
        cumulative = log_probs.double().exp().cumsum(dim=-1)
        draws = self.uniforms[:, step : step + 1] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, draws, right=True).clamp(max=scores.shape[-1] - 1).squeeze(-1)
        tokens = torch.where(self.greedy, scores.argmax(dim=-1), tokens)
        tokens = torch.where(step >= self.max_tokens, self.eos_id, tokens)
        self._chosen.append(log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))
        point_mass = torch.full_like(scores, float("-inf"))
        return point_mass.scatter_(-1, tokens.unsqueeze(-1), 0.0)

    def _truncate(self, logits: Tensor) -> Tensor:
        """Top-k, then top-p, per row; (B, V)."""
        if any(k > 0 for k in self.top_k):
            width = logits.shape[-1]
            ranks = torch.tensor([k if 0 < k < width else width for k in self.top_k], device=logits.device)
            ordered = logits.sort(dim=-1, descending=True).values
            logits = logits.masked_fill(logits < ordered.gather(-1, ranks.unsqueeze(-1) - 1), float("-inf"))
        if bool((self.top_p < 1).any()):
            ordered, order = logits.sort(dim=-1, descending=True)
            p = ordered.softmax(dim=-1)
            outside = p.cumsum(dim=-1) - p >= self.top_p  # the token that crosses the mass stays
            logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
        return logits
