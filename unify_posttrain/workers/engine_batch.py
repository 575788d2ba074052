"""From padded rows to verl's engine and back: what `forward_step` of an engine takes, and where its numbers belong.

An engine takes the tokens of each row without their padding, as a nested tensor, and answers with a number per token in the same
form. Rows are padded on both sides here, (B, P+T), so that the attention mask is the way there and the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto
from verl.utils import tensordict_utils as tu
from verl.utils.dataset.dataset_utils import DatasetPadMode


@dataclass(frozen=True)
class Layout:
    """Where the tokens of B rows stand among their padding.

    Attributes:
        mask: (B, P+T) bool, true for tokens that the model sees; at least one per row.
    """

    mask: Tensor

    @classmethod
    def of(cls, attention_mask: Tensor) -> Layout:
        """A row without any token gets its first column: an engine takes no row of length 0, and nobody reads that number."""
        mask = attention_mask.bool()
        empty = ~mask.any(dim=-1)
        return cls(torch.where(empty[:, None] & (torch.arange(mask.shape[-1], device=mask.device) == 0), True, mask))

    @property
    def offsets(self) -> Tensor:
        """(B + 1,) where each row begins among all tokens."""
        return torch.nn.functional.pad(self.mask.sum(dim=-1).cumsum(dim=0), (1, 0))

    def nested(self, values: Tensor) -> Tensor:
        """(B, P+T) or, of models with several positions per token, (B, C, P+T) values of tokens; jagged in the last dimension."""
        if values.dim() == 2:
            return torch.nested.nested_tensor_from_jagged(values[self.mask], self.offsets)
        rows = [row[:, mask] for row, mask in zip(values, self.mask, strict=True)]
        return torch.nested.nested_tensor_from_jagged(torch.cat(rows, dim=-1), self.offsets, jagged_dim=2)

    def responses(self, nested: Tensor, width: int) -> Tensor:
        """(B, T) float32 of the `width` T response tokens, zeros for padding; differentiable.

        Args:
            nested: jagged, (B, tokens): at each token what is said of the next one.
        """
        values = nested.values().float()
        rows = values.new_zeros(self.mask.shape).masked_scatter(self.mask, values)
        # The last token of a row was told about the first one of the next row.
        return torch.where(self.mask[:, -width:], rows[:, -width - 1 : -1], 0.0)


def engine_batch(rows: DataProto, layout: Layout, *, packed: bool, entropy: bool) -> TensorDict:
    """What `forward_step` reads.

    Args:
        rows: on the device of the engine; meta_info `temperature`, `pad_token_id`.
        layout: of their attention mask.
        packed: rows behind each other (remove-padding), or padded to the longest.
        entropy: the engine takes entropies, too.
    """
    input_ids = layout.nested(rows.batch["input_ids"])
    tensors = {
        "input_ids": input_ids,
        "position_ids": layout.nested(rows.batch["position_ids"]),
        # In 0.7.1 the attention mask of padded rows is made of this one: it must have the lengths of the rows, not of responses.
        "loss_mask": torch.nested.nested_tensor_from_jagged(torch.ones_like(input_ids.values()), input_ids.offsets()),
    }
    batch = tu.get_tensordict(
        tensors,
        {
            "temperature": float(rows.meta_info["temperature"]),
            "pad_token_id": rows.meta_info.get("pad_token_id", 0),
            "use_remove_padding": packed,
            "use_fused_kernels": False,
            "calculate_entropy": entropy,
            "pad_mode": DatasetPadMode.NO_PADDING,
        },
    )
    images = rows.non_tensor_batch.get("multi_modal_inputs")
    if images is not None and any(images):
        tu.assign_non_tensor_stack(batch, "multi_modal_inputs", list(images))
    return batch


def in_parts(rows: DataProto, size: int, forward: Callable[[DataProto], dict[str, Tensor]]) -> dict[str, Tensor]:
    """`forward` of `size` rows at a time, put together on the CPU."""
    outputs: list[dict[str, Any]] = [forward(part) for part in rows.split(size)]
    return {name: torch.cat([output[name].cpu() for output in outputs]) for name in outputs[0]}
