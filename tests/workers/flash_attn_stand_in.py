"""flash-attn's padding functions in plain torch, so that verl's packed path runs without a GPU.

With `actor_rollout_ref.model.use_remove_padding=true` verl lays the attended tokens of all rows end to end and hands the model one
row without padding. For that it needs four functions of `flash_attn.bert_padding`, a package that installs on GPUs only. Their
documented behaviour is written down here again, for the calls that verl makes. B rows, L tokens of a row with its padding, N
attended tokens of all rows. The attention itself is transformers' `sdpa`, which reads off the positions where a row begins.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
import verl.utils.attention_utils as verl_padding
from torch import Tensor

PACKAGE, MODULE = "flash_attn", "flash_attn.bert_padding"


def unpad_input(hidden_states: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor, int, Tensor]:
    """(B, L, …) values and (B, L) mask -> (N, …) attended values, row after row; (N,) where they stood in the flattened B·L; (B+1,)
    int32 borders of the rows among the N; the longest row; (B,) int32 attended tokens of each row."""
    lengths = attention_mask.sum(dim=-1, dtype=torch.int32)
    indices = attention_mask.flatten().nonzero().flatten()
    borders = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    return hidden_states.flatten(0, 1)[indices], indices, borders, int(lengths.max()), lengths


def pad_input(hidden_states: Tensor, indices: Tensor, batch: int, seqlen: int) -> Tensor:
    """(N, …) values back to where `indices` (N,) say, zeros elsewhere: (batch, seqlen, …)."""
    everywhere = hidden_states.new_zeros(batch * seqlen, *hidden_states.shape[1:])
    return everywhere.index_copy(0, indices, hidden_states).unflatten(0, (batch, seqlen))


def index_first_axis(values: Tensor, indices: Tensor) -> Tensor:
    """Rows of `values` (B·L, …) at `indices` (N,)."""
    return values[indices]


def rearrange(values: Tensor, pattern: str) -> Tensor:
    """einops' function of this name, which flash-attn passes on, for the two patterns that verl names.

    Raises:
        ValueError: another pattern.
    """
    if pattern == "b s ... -> (b s) ...":
        return values.flatten(0, 1)
    if pattern == "c b s ... -> (b s) c ...":  # positions of several axes, as vision models have them
        return values.flatten(1, 2).transpose(0, 1)
    raise ValueError(f"pattern={pattern!r} is none that verl uses; add it here")


@contextmanager
def entered() -> Iterator[None]:
    """Let `import flash_attn.bert_padding` find this module.

    verl imports at its first call and remembers what it found; both are as they were afterwards.
    """
    package, module = ModuleType(PACKAGE), ModuleType(MODULE)
    package.__spec__, module.__spec__ = ModuleSpec(PACKAGE, None, is_package=True), ModuleSpec(MODULE, None)
    package.bert_padding = module
    remembered = {f"_{function.__name__}": function for function in (unpad_input, pad_input, index_first_axis, rearrange)}
    with pytest.MonkeyPatch.context() as patch:
        for name, function in remembered.items():
            setattr(module, function.__name__, function)
            patch.setattr(verl_padding, name, getattr(verl_padding, name))  # changed by verl, restored at the end
        patch.setitem(sys.modules, PACKAGE, package)
        patch.setitem(sys.modules, MODULE, module)
        yield
