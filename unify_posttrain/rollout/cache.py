"""Keys and values of a batch that is being decoded: room for all tokens at once, and rows that leave.

transformers' own cache is copied whole with every token, to be one token longer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache, DynamicLayer


class RoomLayer(CacheLayerMixin):
    """Keys and values of one layer, (B, K, room, D) each, of which the first `length` tokens of the first rows are in use.

    Args:
        filled: the layer of a finished prefill, of U rows.
        index: (B,) which of them each row begins with.
        room: tokens beyond those of the prefill.
    """

    is_compileable = False
    is_sliding = False

    def __init__(self, filled: DynamicLayer, index: Tensor, room: int) -> None:
        super().__init__()
        self.is_initialized, self.length = True, filled.get_seq_length()
        self.keys, self.values = self._with_room(filled.keys, index, room), self._with_room(filled.values, index, room)

    def _with_room(self, tokens: Tensor, index: Tensor, room: int) -> Tensor:
        made = tokens.new_empty(len(index), tokens.shape[1], self.length + room, tokens.shape[3])
        made[:, :, : self.length] = tokens[index]
        return made

    def lazy_initialization(self, *_: Tensor) -> None:
        """Done when it was made."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end], self.values[:, :, self.length : end] = key_states, value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def get_max_cache_shape(self) -> int:
        return -1

    def get_mask_sizes(self, queries: Tensor | int) -> tuple[int, int]:
        """Of `queries` tokens more: their positions, or in transformers 5 their number."""
        return self.length + (queries if isinstance(queries, int) else len(queries)), 0

    def keep(self, order: Tensor) -> None:
        """Row i is row order[i] from now on, the others are gone. Only rows that move are copied, into the places of those that
        have left; `order` must not take a row from a place that another one has moved to."""
        moved = (order != torch.arange(len(order), device=order.device)).nonzero().squeeze(-1)
        for tokens in (self.keys, self.values):
            tokens[moved, :, : self.length] = tokens[order[moved], :, : self.length]
        self.keys, self.values = self.keys[: len(order)], self.values[: len(order)]


def empty_cache(config: PretrainedConfig) -> DynamicCache:
    """For the prefill of a model."""
    return DynamicCache(config=config)


def cache_for_rows(prefilled: DynamicCache, index: Tensor, room: int) -> Cache:
    """A cache of B rows with room for more tokens.

    Args:
        prefilled: cache of U prompts.
        index: (B,) the prompt of each row.
        room: tokens that will be added at most.
    """
    if all(type(layer) is DynamicLayer for layer in prefilled.layers):
        return Cache(layers=[RoomLayer(layer, index, room) for layer in prefilled.layers])
    prefilled.batch_select_indices(index)  # a layer that forgets (sliding windows) keeps transformers' own form
    return prefilled


def keep_rows(cache: Cache, order: Tensor) -> None:
    """Row i is row order[i] from now on; see `RoomLayer.keep`."""
    for layer in cache.layers:
        layer.keep(order) if isinstance(layer, RoomLayer) else layer.batch_select_indices(order)
