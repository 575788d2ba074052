"""Which tokens a row attends to while it is decoded: all but the padding before its prompt.

transformers makes the mask of an attention from this with every token, by mapping a function over every place of it, which takes a
third of the time that a small model decodes in. A mask that is whole already it takes as it is.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from unify_posttrain.rollout.attention import REPLACED
from unify_posttrain.rollout.cache import RoomLayer

MAKER = "create_causal_mask"  # of transformers, which returns a whole mask as it is


class GrowingMask:
    """Of n rows, longer by every token.

    Args:
        attended: (n, W) of the prompts: 0 where there is padding.
        whole: whether the model takes (n, 1, 1, L) bool, true where a token is read; otherwise it gets (n, L).
    """

    def __init__(self, attended: Tensor, whole: bool) -> None:
        self._attended, self._whole = attended.bool() if whole else attended, whole

    def with_another(self) -> Tensor:
        """For a query of the next token, which every row reads itself."""
        self._attended = torch.cat([self._attended, self._attended.new_ones(len(self._attended), 1)], dim=1)
        return self._attended[:, None, None] if self._whole else self._attended

    def keep(self, order: Tensor) -> None:
        """Row i is row order[i] from now on."""
        self._attended = self._attended[order]


def made_for(model: PreTrainedModel, cache: Cache) -> bool:
    """Whether a model takes whole masks: one whose every layer reads all tokens, with an attention that takes them as bool."""
    asks_transformers = hasattr(sys.modules[type(model).__module__], MAKER)
    reads_all = all(isinstance(layer, RoomLayer) for layer in cache.layers)
    return asks_transformers and reads_all and model.config._attn_implementation.startswith(REPLACED)
