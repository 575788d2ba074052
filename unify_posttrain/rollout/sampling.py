"""Sampling by request: each row of a batch has its own temperature, truncation, length and random numbers.

Every token is drawn by inverting the cumulative distribution at a uniform number that belongs to (request seed, position), so a
request's tokens depend on its seed and its logits and not on the requests that happen to share its batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

BAN = -100.0  # a bias that bans a token: the lowest that vLLM takes
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
        banned: tokens that are never drawn.
    """

    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int | None
    banned: tuple[int, ...] = ()

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
            banned=_banned(params.pop("logit_bias", None) or {}),
        )
        if params.pop("repetition_penalty", 1.0) != 1.0:
            raise ValueError("rollout.name=hf does not implement repetition_penalty; use 1.0, or rollout.name=vllm")
        unknown = sorted(key for key, value in params.items() if value not in (None, [], False))
        if unknown:
            raise ValueError(f"rollout.name=hf does not implement sampling parameters {unknown}; use rollout.name=vllm")
        if built.temperature < 0 or not 0 < built.top_p <= 1:
            raise ValueError(f"temperature={built.temperature} must be >= 0 and top_p={built.top_p} in (0, 1]")
        return built


def _banned(bias: Mapping[Any, float]) -> tuple[int, ...]:
    """Tokens of a `logit_bias`, which this engine has for leaving tokens out alone."""
    others = {token: value for token, value in bias.items() if value > BAN}
    if others:
        raise ValueError(
            f"rollout.name=hf takes a logit_bias of {BAN:.0f} only, which bans a token, not {others}; use rollout.name=vllm"
        )
    return tuple(sorted(int(token) for token in bias))


class SeededSampler:
    """Draws the next token of every row that is still being decoded.

    Args:
        params: one per row (B) of the batch.
        device: of the logits.
    """

    def __init__(self, params: Sequence[SamplingParams], device: torch.device) -> None:
        longest = max(p.max_tokens for p in params)
        uniforms = np.stack([np.random.default_rng(p.seed).random(longest) for p in params])
        self.uniforms = torch.from_numpy(uniforms).to(device)  # (B, steps) float64

        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, device=device, dtype=torch.float32).unsqueeze(-1)

        self.greedy = torch.tensor([p.temperature == 0 for p in params], device=device)
        self.temperature = column([p.temperature or 1.0 for p in params])
        self.top_p = column([p.top_p for p in params])
        self.top_k = torch.tensor([max(p.top_k, 0) for p in params], device=device).unsqueeze(-1)
        # Asked once: what no row wants is not computed for any token.
        self.all_greedy, self.any_greedy = bool(self.greedy.all()), bool(self.greedy.any())
        self.any_top_k, self.any_top_p = bool((self.top_k > 0).any()), bool((self.top_p < 1).any())
        # Rows of one model ban the same tokens; each distinct ban is a mask, and rows say which is theirs.
        bans = list(dict.fromkeys(p.banned for p in params))
        self.bans = bans if any(bans) else []
        self.ban_of = torch.tensor([bans.index(p.banned) for p in params], device=device)

    def draw(self, logits: Tensor, rows: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The token at position `step` of the response, for n of the batch's rows.

        Args:
            logits: (n, V).
            rows: (n,) which rows of the batch these are.
            step: counted from 0.

        Returns:
            (n,) tokens, and (n,) float32 log π of each under the tempered, truncated distribution that it was drawn from; of greedy
            rows under the untempered one.
        """
        logits = self._allowed(logits, rows)
        log_probs = torch.log_softmax(self._truncate(logits.float() / self.temperature[rows], rows), dim=-1)
        if self.all_greedy:
            tokens = logits.argmax(dim=-1)
        else:
            # float64: a cumulative sum over a vocabulary of 150k in float32 would lose the tail.
            cumulative = log_probs.double().exp().cumsum(dim=-1)
            draws = self.uniforms[rows, step].unsqueeze(-1) * cumulative[:, -1:]
            tokens = torch.searchsorted(cumulative, draws, right=True).clamp(max=logits.shape[-1] - 1).squeeze(-1)
            if self.any_greedy:
                tokens = torch.where(self.greedy[rows], logits.argmax(dim=-1), tokens)
        return tokens, log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)

    def _allowed(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Without the tokens that each row bans; (n, V)."""
        for number, banned in enumerate(self.bans):
            if banned:
                ids = torch.tensor(banned, device=logits.device)
                theirs = (self.ban_of[rows] == number).unsqueeze(-1)
                logits = logits.index_copy(-1, ids, logits[:, ids].masked_fill(theirs, float("-inf")))
        return logits

    def _truncate(self, logits: Tensor, rows: Tensor) -> Tensor:
        """Top-k, then top-p, per row; (n, V)."""
        if self.any_top_k:
            width, top_k = logits.shape[-1], self.top_k[rows]
            ranks = torch.where((top_k > 0) & (top_k < width), top_k, width)
            ordered = logits.sort(dim=-1, descending=True).values
            logits = logits.masked_fill(logits < ordered.gather(-1, ranks - 1), float("-inf"))
        if self.any_top_p:
            ordered, order = logits.sort(dim=-1, descending=True)
            p = ordered.softmax(dim=-1)
            outside = p.cumsum(dim=-1) - p >= self.top_p[rows]  # the token that crosses the mass stays
            logits = logits.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), float("-inf"))
        return logits
