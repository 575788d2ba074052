"""Rows on their way to an engine and back: many in one message, without padding, and put into verl's columns for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Requests:
    """What one replica is asked for, B rows.

    Attributes:
        prompts: (B,) arrays of token ids, response prefix included. Rows may share an array, which then travels once.
        max_tokens: (B,) limit of each response.
        seeds: (B,) of each row's draws; None: the engine draws as it likes.
        sampling: parameters that all rows share, by verl's names.
        portion: as many rows are sent back at once, as soon as they have ended.
    """

    prompts: Sequence[np.ndarray]
    max_tokens: Sequence[int]
    seeds: Sequence[int] | None
    sampling: dict[str, Any]
    portion: int

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, end: int) -> Requests:
        """Rows start to end."""
        seeds = None if self.seeds is None else self.seeds[start:end]
        return Requests(self.prompts[start:end], self.max_tokens[start:end], seeds, self.sampling, self.portion)

    def params(self, row: int) -> dict[str, Any]:
        """The sampling parameters of a row, a copy."""
        seed = {} if self.seeds is None else {"seed": int(self.seeds[row])}
        return {**self.sampling, "max_tokens": int(self.max_tokens[row]), **seed}


@dataclass(frozen=True)
class Responses:
    """Rows that have ended, N of them.

    Attributes:
        rows: (N,) which of the requests these are.
        lengths: (N,) tokens of each response.
        token_ids: (sum of lengths,) int32, row behind row.
        log_probs: (sum of lengths,) float32; None if they were not asked for.
        preempted: (N,) how often the engine set a row aside; None: it does not say.
        fields: what the engine says of these rows beside that, by name.
    """

    rows: np.ndarray
    lengths: np.ndarray
    token_ids: np.ndarray
    log_probs: np.ndarray | None
    preempted: np.ndarray | None = None
    fields: dict[str, Any] = field(default_factory=dict)


class PaddedRows:
    """verl's columns of B rows, filled as responses arrive.

    P prompt tokens, padded on the left, and T response tokens, padded on the right.

    Args:
        prompts: (B,) arrays of token ids, without response prefix.
        prefixes: (B,) tokens that the response begins with.
        trained: (B,) whether those are trained.
        prompt_length, response_length: P and T.
        pad_id: filler.
    """

    def __init__(
        self,
        prompts: Sequence[np.ndarray],
        prefixes: Sequence[Sequence[int]],
        trained: Sequence[bool],
        prompt_length: int,
        response_length: int,
        pad_id: int,
    ) -> None:
        rows = len(prompts)
        self.prompts = torch.full((rows, prompt_length), pad_id)
        self.responses = torch.full((rows, response_length), pad_id)
        self.response_mask = torch.zeros(rows, response_length, dtype=torch.long)
        self.attention_mask = torch.zeros(rows, prompt_length + response_length, dtype=torch.long)
        self.log_probs = torch.zeros(rows, response_length)
        self.prefix_lengths = torch.tensor([len(prefix) for prefix in prefixes])
        padded = {id(prompt): _on_the_right(prompt, prompt_length, pad_id) for prompt in prompts}
        for row, prompt in enumerate(prompts):
            self.prompts[row] = padded[id(prompt)]
            self.attention_mask[row, prompt_length - len(prompt) : prompt_length] = 1
        for row in self.prefix_lengths.nonzero().squeeze(-1).tolist():
            given = len(prefixes[row])
            self.responses[row, :given] = torch.tensor(prefixes[row])
            self.response_mask[row, :given] = int(trained[row])
            self.attention_mask[row, prompt_length : prompt_length + given] = 1

    def fill(self, responses: Responses, rows: Tensor) -> None:
        """Put responses behind the prefixes of `rows` (N,)."""
        width = self.responses.shape[1]
        start = self.prefix_lengths[rows].unsqueeze(-1)
        columns = torch.arange(width)
        sampled = (columns >= start) & (columns < start + torch.from_numpy(responses.lengths).unsqueeze(-1))
        self.responses[rows] = self.responses[rows].masked_scatter(sampled, torch.from_numpy(responses.token_ids).long())
        self.response_mask[rows] = self.response_mask[rows].masked_fill(sampled, 1)
        attended = sampled | (columns < start)
        self.attention_mask[rows, -width:] = attended.long()
        if responses.log_probs is not None:
            # Tokens of a prefix were not sampled: 0, which nobody reads.
            self.log_probs[rows] = self.log_probs[rows].masked_scatter(sampled, torch.from_numpy(responses.log_probs))

    def tensors(self, log_probs: bool) -> dict[str, Tensor]:
        """verl's columns of all rows."""
        found = {
            "prompts": self.prompts,
            "responses": self.responses,
            "response_mask": self.response_mask,
            "input_ids": torch.cat([self.prompts, self.responses], dim=1),
            "attention_mask": self.attention_mask,
            "position_ids": _positions(self.attention_mask),
        }
        return {**found, "rollout_log_probs": self.log_probs} if log_probs else found

    def to_score(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns that reward managers read, of some rows, no wider than the longest of them."""
        width = self.responses.shape[1]
        attended = self.attention_mask[rows]
        first = int(attended.argmax(dim=-1).min())
        longest = int(attended[:, -width:].sum(dim=-1).max())
        prompts, responses = self.prompts[rows, first:], self.responses[rows, :longest]
        mask = attended[:, first : attended.shape[1] - width + longest]
        return {
            "prompts": prompts,
            "responses": responses,
            "input_ids": torch.cat([prompts, responses], dim=1),
            "attention_mask": mask,
            "position_ids": _positions(mask),
        }


def _on_the_right(prompt: np.ndarray, width: int, pad_id: int) -> Tensor:
    row = torch.full((width,), pad_id)
    row[width - len(prompt) :] = torch.from_numpy(prompt)
    return row


def _positions(mask: Tensor) -> Tensor:
    """verl's position ids. Its function is not imported: servers need this module, and would take verl's seconds to start."""
    return (mask.cumsum(dim=-1) - 1).clip(min=0)
