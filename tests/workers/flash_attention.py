"""What verl takes from flash-attn, in torch: for machines without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from tests.workers.flash_attn_stand_in import entered


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


@contextmanager
def packing() -> Iterator[None]:
    """Inside, verl can pack rows: with flash-attn's functions where it is installed, else with those of the stand-in."""
    with nullcontext() if find_spec("flash_attn") else entered():
        yield
