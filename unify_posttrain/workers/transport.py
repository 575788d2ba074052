"""How batches travel between driver and workers: without what padding and 64 bits take of them.

verl pickles the tensors of a DataProto as they are. A batch of 10,240 rows of 32k tokens is 16 GB then, most of it padding and
64-bit integers that need 18 bits. Here the tensors of tokens travel as rows of their own lengths (`experience.ragged`), each tensor
narrowed to 32 bits if its values fit, all of it compressed by LZ4. Workers get what verl sends them: plain, padded, whole numbers
of 64 bits, the positions of tokens that the driver does not hold. What comes back is padded again in the driver, where its padding
takes no memory. `python -m tests.benchmarks.transport` measures it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow
import torch
from tensordict import TensorDict
from torch import Tensor
from verl import DataProto
from verl.utils.model import compute_position_id_with_mask

from unify_posttrain.experience.ragged import IDS, MASK, PARTS, Source, Spans, gather, is_part, numbers_of, parts_of, spanned, zeros

CODEC = "lz4"
NARROW = torch.iinfo(torch.int32)
WIDE = ("input_ids", "attention_mask", "response_mask", *PARTS)  # 64 bits in verl's workers, fewer in the driver


class Travelling(DataProto):
    """A batch in the driver: verl's DataProto, whose rows are copied without their padding, and packed when they are pickled.

    verl makes the shares of the ranks, selections and joins by `type(self)`, so all of them are of this class; what arrives at a
    worker is a plain DataProto.
    """

    spans: Spans | None = None  # of a reply, which has no attention mask

    def __reduce__(self) -> tuple[Callable[..., DataProto], tuple[Any, ...]]:
        if self.batch is None:
            return DataProto, (None, self.non_tensor_batch, self.meta_info)
        tensors = dict(self.batch.items())
        if self.spans is not None:
            packed = {name: pack(value, self.spans, name) for name, value in tensors.items()}
            return _returned, (packed, self.spans, self.non_tensor_batch, self.meta_info)
        packed, width = {}, None
        spans = Spans.of(tensors) if "input_ids" in tensors else None
        if spans is not None and all(name in tensors and is_part(tensors, name) for name in PARTS):
            width = tensors["responses"].shape[-1]
        for name, value in tensors.items():
            if width is None or name not in PARTS:
                packed[name] = pack(value, spans, name)
        return _arrive, (packed, spans, width, len(self.batch), self.non_tensor_batch, self.meta_info)

    def select_idxs(self, idxs: Any) -> DataProto:
        """verl's; `idxs` are numbers of rows or a mask of them."""
        rows = np.asarray(idxs)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        columns = {name: column[rows] for name, column in self.non_tensor_batch.items()}
        return type(self)(batch=self._copied(rows), non_tensor_batch=columns, meta_info=self.meta_info)

    def reorder(self, indices: Tensor) -> None:
        rows = indices.numpy()
        self.batch = self._copied(rows)
        self.non_tensor_batch = {name: column[rows] for name, column in self.non_tensor_batch.items()}

    def _copied(self, rows: np.ndarray) -> TensorDict | None:
        if self.batch is None:
            return None
        tensors = dict(self.batch.items())
        source = Source(tensors, rows, np.arange(len(rows)), Spans.of(tensors))
        return TensorDict(gather([source], len(rows)), batch_size=[len(rows)])

    @staticmethod
    def concat(data: Sequence[DataProto]) -> DataProto:
        """verl's, of batches with the same tensors."""
        rest = DataProto.concat([DataProto(None, each.non_tensor_batch, each.meta_info) for each in data])
        batch = None
        if data[0].batch is not None:
            sources, total = [], 0
            for each in data:
                tensors = dict(each.batch.items())
                spans, rows = getattr(each, "spans", None) or Spans.of(tensors), len(each)
                sources.append(Source(tensors, np.arange(rows), np.arange(total, total + rows), spans))
                total += rows
            batch = TensorDict(gather(sources, total), batch_size=[total])
        return Travelling(batch, rest.non_tensor_batch, rest.meta_info)


def travelling(data: DataProto) -> Travelling:
    """The same tensors and columns, not copied."""
    return Travelling(batch=data.batch, non_tensor_batch=data.non_tensor_batch, meta_info=data.meta_info)


def reply(data: DataProto, asked: DataProto) -> Travelling:
    """What a worker returns: (B, T) tensors of the batch that it was asked about. Outside of responses they arrive as 0."""
    made = travelling(data)
    spans = Spans.of(dict(asked.batch.items()))
    if spans is not None and data.batch is not None:
        made.spans = Spans(np.zeros_like(spans.first), spans.end - spans.prompt, 0)
    return made


@dataclass(frozen=True)
class Packed:
    """A tensor's bytes.

    Attributes:
        shape, dtype: of the tensor.
        sent: dtype of the numbers in `content`, if narrower.
        size: bytes of those numbers.
        content: compressed; of all numbers, or of the rows' spans one behind the other.
        fill: what stands outside of the spans; None: `content` has all numbers.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    sent: torch.dtype
    size: int
    content: bytes
    fill: int | None = None


def pack(tensor: Tensor, spans: Spans | None = None, name: str = "") -> Packed:
    """A tensor by name, without its padding if it has tokens in the spans of its rows alone.

    Raises:
        TypeError: a nested tensor, whose rows have no common shape; verl's trainer has none.
    """
    if tensor.is_nested:
        raise TypeError("nested tensors have no shape to arrive in; pad them first")
    sent, fill = tensor.detach().cpu(), None
    if spans is not None and (spanned(name, tensor) or name == "input_ids"):
        fill = _padding(sent, spans) if name == "input_ids" else 0
        rows = [row[first:end] for row, first, end in zip(numbers_of(sent), *spans.within(name), strict=True)]
        sent = torch.from_numpy(np.concatenate(rows)).view(tensor.dtype)
    sent = sent.contiguous()
    if sent.dtype == torch.int64 and sent.numel():
        least, most = torch.aminmax(sent)
        if least >= NARROW.min and most <= NARROW.max:
            sent = sent.int()
    numbers = sent.reshape(-1).view(torch.uint8).numpy()
    content = pyarrow.compress(pyarrow.py_buffer(numbers), codec=CODEC, asbytes=True)
    return Packed(tuple(tensor.shape), tensor.dtype, sent.dtype, numbers.nbytes, content, fill)


def unpack(packed: Packed, spans: Spans | None = None, name: str = "", dtype: torch.dtype | None = None) -> Tensor:
    """The tensor, on CPU, in memory of its own; of `dtype` if that is given."""
    content = pyarrow.decompress(packed.content, decompressed_size=packed.size, codec=CODEC)
    numbers = torch.frombuffer(bytearray(content), dtype=torch.uint8) if packed.size else torch.empty(0, dtype=torch.uint8)
    numbers, dtype = numbers.view(packed.sent), dtype or packed.dtype
    if packed.fill is None:
        return numbers.to(dtype).reshape(packed.shape)
    out = torch.full(packed.shape, packed.fill, dtype=dtype) if packed.fill else zeros(packed.shape, dtype)
    firsts, ends = spans.within(name)  # type: ignore[union-attr]
    values, at = numbers_of(numbers), 0
    for row, first, end in zip(numbers_of(out), firsts, ends, strict=True):
        row[first:end] = values[at : at + end - first]
        at += end - first
    return out


def _padding(ids: Tensor, spans: Spans) -> int:
    """The padding token: that of the first row which has one."""
    for row, first, end in zip(ids, spans.first.tolist(), spans.end.tolist(), strict=True):
        if first > 0 or end < len(row):
            return int(row[0] if first > 0 else row[-1])
    return 0


def _arrive(
    packed: Mapping[str, Packed],
    spans: Spans | None,
    width: int | None,
    rows: int,
    columns: Mapping[str, Any],
    meta_info: Mapping[str, Any],
) -> DataProto:
    tensors = {
        name: unpack(value, spans, name, torch.int64 if name in WIDE and value.dtype in (IDS, MASK) else None)
        for name, value in packed.items()
    }
    if width is not None:
        tensors |= {name: part.contiguous() for name, part in parts_of(tensors["input_ids"], width).items()}
    if spans is not None and "position_ids" not in tensors:
        tensors["position_ids"] = compute_position_id_with_mask(tensors["attention_mask"])
    return DataProto(TensorDict(tensors, batch_size=[rows]), dict(columns), dict(meta_info))


def _returned(packed: Mapping[str, Packed], spans: Spans, columns: Mapping[str, Any], meta_info: Mapping[str, Any]) -> Travelling:
    tensors = {name: unpack(value, spans, name) for name, value in packed.items()}
    made = Travelling(TensorDict(tensors, batch_size=[len(spans.end)]), dict(columns), dict(meta_info))
    made.spans = spans
    return made
