"""Rows on their way to an engine and back: many in one message, without padding, and put into verl's columns for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unify_posttrain.experience.ragged import IDS, MASK, parts_of, zeros

CELLS = 2**22  # rows times columns of what is scored in one message, 40 bytes each


@dataclass(frozen=True)
class Requests:
    """What one replica is asked for, B rows.

    Attributes:
        prompts: (B,) arrays of token ids, response prefix included. Rows may share an array, which then travels once.
        max_tokens: (B,) limit of each response.
        seeds: (B,) of each row's draws; None: the engine draws as it likes.
        sampling: parameters that all rows share, by verl's names.
        portion: as many rows are sent back at once, as soon as they have ended.
        pictures: (B,) what a model that sees needs of each prompt's pictures, on CPU. Rows may share a mapping, as they may an
            array of ids; None: there are none.
    """

    prompts: Sequence[np.ndarray]
    max_tokens: Sequence[int]
    seeds: Sequence[int] | None
    sampling: dict[str, Any]
    portion: int
    pictures: Sequence[Mapping[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, start: int, end: int) -> Requests:
        """Rows start to end."""
        seeds, shown = (None if each is None else each[start:end] for each in (self.seeds, self.pictures))
        return Requests(self.prompts[start:end], self.max_tokens[start:end], seeds, self.sampling, self.portion, shown)

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

    Attributes:
        token_ids: (B,) `prompts`.
        shown: (B,) what a model that sees needs of each row's pictures, see `Requests`; None: there are none.
        sampling: parameters of all rows, beside those of the configuration.
    """

    shown: Sequence[Mapping[str, Tensor]] | None = None
    sampling: Mapping[str, Any] = {}

    def __init__(
        self,
        prompts: Sequence[np.ndarray],
        prefixes: Sequence[Sequence[int]],
        trained: Sequence[bool],
        prompt_length: int,
        response_length: int,
        pad_id: int,
    ) -> None:
        rows, width, self.token_ids = len(prompts), prompt_length + response_length, prompts
        self.input_ids = torch.full((rows, width), pad_id, dtype=IDS)
        self.prompts, self.responses = parts_of(self.input_ids, response_length).values()
        self.response_mask = zeros((rows, response_length), MASK)
        self.attention_mask = zeros((rows, width), MASK)
        self.log_probs = zeros((rows, response_length), torch.float32)
        self.prefix_lengths = np.array([len(prefix) for prefix in prefixes])
        # Row by row as numpy sees them: of long rows a torch of whole tensors would touch the padding.
        self.ids, self.trained, self.attended = (each.numpy() for each in (self.input_ids, self.response_mask, self.attention_mask))
        for row, (prompt, prefix) in enumerate(zip(prompts, prefixes, strict=True)):
            first, end = prompt_length - len(prompt), prompt_length + len(prefix)
            self.ids[row, first:prompt_length] = prompt
            self.ids[row, prompt_length:end] = prefix
            self.trained[row, : len(prefix)] = int(trained[row])
            self.attended[row, first:end] = 1

    def fill(self, responses: Responses, rows: Tensor) -> None:
        """Put responses behind the prefixes of `rows` (N,)."""
        prompt, log_probs, at = self.prompts.shape[1], self.log_probs.numpy(), 0
        for row, length in zip(rows.tolist(), responses.lengths.tolist(), strict=True):
            start, tokens = self.prefix_lengths[row], slice(at, at + length)
            self.ids[row, prompt + start : prompt + start + length] = responses.token_ids[tokens]
            self.trained[row, start : start + length] = 1
            self.attended[row, prompt + start : prompt + start + length] = 1
            if responses.log_probs is not None:
                # Tokens of a prefix were not sampled: 0, which nobody reads.
                log_probs[row, start : start + length] = responses.log_probs[tokens]
            at += length

    def tensors(self, log_probs: bool) -> dict[str, Tensor]:
        """verl's columns of all rows, in as many bits as they need; positions are made where they are read, at the workers."""
        found = {
            "prompts": self.prompts,
            "responses": self.responses,
            "response_mask": self.response_mask,
            "input_ids": self.input_ids,
            "attention_mask": self.attention_mask,
        }
        return {**found, "rollout_log_probs": self.log_probs} if log_probs else found

    @property
    def rows_of_a_message(self) -> int:
        """How many rows :meth:`to_score` may be asked for at once, however long they are."""
        return max(1, CELLS // self.input_ids.shape[1])

    def to_score(self, rows: Tensor) -> dict[str, Tensor]:
        """The columns that reward managers read, of some rows, no wider than the longest of them."""
        width = self.responses.shape[1]
        attended = self.attention_mask[rows].long()
        first = int(attended.argmax(dim=-1).min())
        longest = int(attended[:, -width:].sum(dim=-1).max())
        prompts, responses = self.prompts[:, first:][rows].long(), self.responses[:, :longest][rows].long()
        mask = attended[:, first : attended.shape[1] - width + longest]
        return {
            "prompts": prompts,
            "responses": responses,
            "input_ids": torch.cat([prompts, responses], dim=1),
            "attention_mask": mask,
            "position_ids": _positions(mask),
        }


def _positions(mask: Tensor) -> Tensor:
    """verl's position ids. Its function is not imported: servers need this module, and would take verl's seconds to start."""
    return (mask.cumsum(dim=-1) - 1).clip(min=0)
