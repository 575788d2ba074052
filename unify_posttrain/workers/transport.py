"""How batches travel between driver and workers: without what padding and 64 bits take of them.

verl pickles the tensors of a DataProto as they are. A batch of 10,240 rows of 32k tokens is 16 GB then, most of it padding and
64-bit integers that need 18 bits. Here each tensor is narrowed to 32 bits if its values fit, and compressed by LZ4, which makes
next to nothing of padding; tensors of any shape arrive equal to the last bit. `python -m tests.benchmarks.transport` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto

CODEC = "lz4"
NARROW = torch.iinfo(torch.int32)


class Travelling(DataProto):
    """A DataProto that is packed when it is pickled; what arrives is a plain one.

    verl cuts a batch into the shares of the ranks by `type(self)`, so each share is packed by itself, in the thread that sends it.
    """

    def __reduce__(self) -> tuple[Callable[..., DataProto], tuple[Any, ...]]:
        if self.batch is None:
            return DataProto, (None, self.non_tensor_batch, self.meta_info)
        packed = {name: pack(value) for name, value in self.batch.items()}
        return _arrive, (packed, len(self.batch), self.non_tensor_batch, self.meta_info)


def travelling(data: DataProto) -> Travelling:
    """The same tensors and columns, not copied."""
    return Travelling(batch=data.batch, non_tensor_batch=data.non_tensor_batch, meta_info=data.meta_info)


@dataclass(frozen=True)
class Packed:
    """A tensor's bytes.

    Attributes:
        shape, dtype: of the tensor.
        sent: dtype of the numbers in `content`, if narrower.
        size: bytes of those numbers.
        content: compressed.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    sent: torch.dtype
    size: int
    content: bytes


def pack(tensor: Tensor) -> Packed:
    """Raises:
    TypeError: a nested tensor, whose rows have no common shape; verl's trainer has none.
    """
    if tensor.is_nested:
        raise TypeError("nested tensors have no shape to arrive in; pad them first")
    sent = tensor.detach().cpu().contiguous()
    if sent.dtype == torch.int64 and sent.numel():
        least, most = torch.aminmax(sent)
        if least >= NARROW.min and most <= NARROW.max:
            sent = sent.int()
    numbers = sent.reshape(-1).view(torch.uint8).numpy()
    content = pyarrow.compress(pyarrow.py_buffer(numbers), codec=CODEC, asbytes=True)
    return Packed(tuple(tensor.shape), tensor.dtype, sent.dtype, numbers.nbytes, content)


def unpack(packed: Packed) -> Tensor:
    """The tensor, on CPU, in memory of its own."""
    content = pyarrow.decompress(packed.content, decompressed_size=packed.size, codec=CODEC)
    numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8) if packed.size else torch.empty(0, dtype=torch.uint8)
    return numbers.view(packed.sent).to(packed.dtype).reshape(packed.shape)


def _arrive(packed: Mapping[str, Packed], rows: int, columns: Mapping[str, Any], meta_info: Mapping[str, Any]) -> DataProto:
    batch = TensorDict({name: unpack(value) for name, value in packed.items()}, batch_size=[rows])
    return DataProto(batch=batch, non_tensor_batch=dict(columns), meta_info=dict(meta_info))
