"""Attention for one query token per row, as decoding asks for it with every token.

torch's attention kernel for CPUs cuts keys and values into blocks and hands them to threads, which pays for long queries; for a
single one its bookkeeping takes longer than the arithmetic. Two batched matrix products are the same sum, computed at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

REPLACED = "sdpa"
NAME = "sdpa_one_query"


def one_query_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' `sdpa` attention; a single query token in float32 takes two batched products instead of the kernel.

    Args:
        query: (B, H, Q, D).
        key, value: (B, K, L, D) with K dividing H: each of the K heads serves H/K heads of the query.
        attention_mask: (B, 1, Q, L), bool (true: attended) or added to the scores; None: everything is attended.
        scaling: of the scores; None: D^-0.5.

    Returns:
        (B, Q, H, D), and None in the place of weights, which nobody reads.
    """
    rows, heads, queries, size = query.shape
    if queries > 1 or query.dtype != torch.float32 or dropout:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options)
    shared = key.shape[1]
    # (B, K, H/K, D) x (B, K, D, L): the query heads of a key head are rows of one product, so that no key is copied for them.
    scores = query.reshape(rows, shared, heads // shared, size) * (size**-0.5 if scaling is None else scaling) @ key.mT
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[-2]]
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return (scores.softmax(dim=-1) @ value).reshape(rows, 1, heads, size), None


ALL_ATTENTION_FUNCTIONS.register(NAME, one_query_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS[REPLACED])


@contextmanager
def fast_attention(model: PreTrainedModel) -> Iterator[None]:
    """Within it `model` decodes with this attention, if it is on a CPU and would use transformers' `sdpa`."""
    if model.device.type != "cpu" or model.config._attn_implementation != REPLACED:
        yield
        return
    model.config._attn_implementation = NAME
    try:
        yield
    finally:
        model.config._attn_implementation = REPLACED
