"""What verl takes from flash-attn, in torch: for machines without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import verl.workers.actor.dp_actor as dp_actor
from torch import Tensor


class CrossEntropy(torch.autograd.Function):
    """The memory of flash-attn's, not its value: keeps the logits; their gradient takes their memory, or with `in_place` false new
    memory."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, in_place: bool) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.in_place = in_place
        return -logits[..., 0].float()

    @staticmethod
    def backward(ctx: Any, _grad: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        return logits if ctx.in_place else torch.zeros_like(logits), None


def unpad_input(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, None, None]:
    indices = mask.flatten().nonzero().squeeze(-1)
    return values.flatten(0, 1)[indices], indices, None, None


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    full = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return full.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))


@contextmanager
def packing() -> Iterator[None]:
    """Inside, verl can pack rows: with flash-attn's functions where it is installed, else with those above."""
    with pytest.MonkeyPatch.context() as patch:
        if find_spec("flash_attn") is None:
            patch.setattr(dp_actor, "unpad_input", unpad_input)
            patch.setattr(dp_actor, "pad_input", pad_input)
            patch.setattr(dp_actor, "index_first_axis", lambda values, indices: values[indices])
            patch.setattr(dp_actor, "rearrange", lambda values, pattern: values.flatten(0, 1))
        yield
