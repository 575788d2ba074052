"""Padded tensors that take no more memory than their tokens: what a batch of long rows needs in the driver.

Most of a (B, T) tensor of responses is padding. Its shape stays, so that everything reads it as it reads any tensor; but zeros that
nobody writes take no memory (:func:`zeros`), and rows are copied from the first to the last token and no further (:func:`gather`).

A row's tokens are one stretch of its P + T columns, its `Spans`: prompts are padded on the left, responses on the right. Outside
of it the tensors named here hold what nobody reads, and 0 stands there in a copy. Padding tokens are kept, as texts are decoded
with them.
"""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WHOLE = "attention_mask"  # (B, P + T)
OF_RESPONSES = frozenset(
    (
        "response_mask",
        "prefix_mask",
        "rollout_log_probs",
        "old_log_probs",
        "ref_log_prob",
        "entropys",
        "start_entropys",
        "rm_scores",
        "token_level_scores",
        "token_level_rewards",
        "advantages",
        "returns",
        "values",
    )
)  # (B, T)
PARTS = ("prompts", "responses")  # of `input_ids`, in this order
IDS, MASK = torch.int32, torch.int8  # what tokens and masks need; int8 because 1 - mask and -mask are right, unlike uint8's
LARGE = 2**20  # bytes; below, memory is not worth a mapping of its own
BLOCK = 256  # rows that are copied at a time where whole rows are


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Like `torch.zeros`; large ones take memory page by page as they are written, reading them takes none."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size < LARGE:
        return torch.zeros(tuple(shape), dtype=dtype)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    memory = mmap.mmap(-1, size, flags=flags)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # else a token may take a page of two million bytes
    return torch.frombuffer(memory, dtype=dtype).reshape(tuple(shape))


@dataclass(frozen=True)
class Spans:
    """Where the tokens of each row stand.

    Attributes:
        first, end: (B,) columns of prompt and response together; every row has at least one.
        prompt: P, the columns of prompts.
    """

    first: np.ndarray
    end: np.ndarray
    prompt: int

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Spans | None:
        """Of a batch; None if it has no rows of tokens. An empty response spans all its columns: its score stands in the last."""
        if WHOLE not in tensors or "responses" not in tensors or tensors[WHOLE].is_floating_point():
            return None
        mask = tensors[WHOLE]
        width, size = mask.shape[1], mask.element_size()
        prompt = width - tensors["responses"].shape[-1]
        first, end = np.zeros(len(mask), dtype=np.int64), np.full(len(mask), width, dtype=np.int64)
        for row, numbers in enumerate(mask.cpu().contiguous().numpy()):
            content = numbers.tobytes()
            last = content.rfind(b"\x01") // size  # no search is as fast as that of bytes
            if last >= prompt:
                first[row], end[row] = content.find(b"\x01") // size, last + 1
        return cls(np.minimum(first, prompt), end, prompt)

    def __getitem__(self, rows: np.ndarray | slice) -> Spans:
        return Spans(self.first[rows], self.end[rows], self.prompt)

    def within(self, name: str) -> tuple[list[int], list[int]]:
        """Of each row first and end in the columns of the tensor `name`."""
        if name == WHOLE or name == "input_ids":
            return self.first.tolist(), self.end.tolist()
        return [0] * len(self.end), (self.end - self.prompt).tolist()


class Source(NamedTuple):
    """Rows to copy: `picked[i]` of `tensors` goes to row `positions[i]`. `spans` of all their rows: None copies whole rows."""

    tensors: Mapping[str, Tensor]
    picked: np.ndarray
    positions: np.ndarray
    spans: Spans | None


def gather(sources: Sequence[Source], total: int) -> dict[str, Tensor]:
    """`total` rows from several sources, one copy per tensor.

    Args:
        sources: the first one decides which tensors exist, with which dtype and width; a later one that lacks one contributes
            zeros. Positions of all sources cover 0 .. total - 1 once.
        total: rows.

    Raises:
        ValueError: a tensor of a later source has another width.
    """
    template = sources[0].tensors
    gathered: dict[str, Tensor] = {}
    known: dict[tuple[int, ...], str] = {}
    for name, like in template.items():
        same = known.setdefault((like.data_ptr(), like.element_size(), *like.shape, *like.stride()), name)
        if len(sources) == 1 and same in gathered and like.numel():
            gathered[name] = gathered[same]  # a tensor under two names, as verl's scores and rewards, stays one
            continue
        present = [source for source in sources if name in source.tensors and len(source.picked)]
        for source in present:
            if source.tensors[name].shape[1:] != like.shape[1:]:
                other = tuple(source.tensors[name].shape[1:])
                raise ValueError(f"tensor {name!r}: rows of {other} cannot join {tuple(like.shape[1:])}")
        if name in PARTS and is_part(template, name):
            continue  # of the copy of `input_ids`
        sparse = spanned(name, like)
        out = zeros((total, *like.shape[1:]), like.dtype) if sparse else torch.zeros((total, *like.shape[1:]), dtype=like.dtype)
        for source in present:
            if sparse and source.spans is not None:
                _copy_spans(source, name, out)
            else:
                _copy_rows(source, name, out)
        gathered[name] = out
    parts = parts_of(gathered["input_ids"], template["responses"].shape[-1]) if "input_ids" in gathered else {}
    return {name: gathered[name] if name in gathered else parts[name] for name in template}


def spanned(name: str, tensor: Tensor) -> bool:
    """Whether a tensor holds something in its rows' spans alone."""
    return (name == WHOLE or name in OF_RESPONSES) and tensor.dim() == 2


def parts_of(input_ids: Tensor, width: int) -> dict[str, Tensor]:
    """`prompts` and `responses` (B, T = width), which share the memory of `input_ids`."""
    prompt = input_ids.shape[1] - width
    return {"prompts": input_ids[:, :prompt], "responses": input_ids[:, prompt:]}


def is_part(tensors: Mapping[str, Tensor], name: str) -> bool:
    """Whether a tensor is a part of `input_ids`, in its memory."""
    if not {"input_ids", "responses"} <= tensors.keys():
        return False
    mine, part = tensors[name], parts_of(tensors["input_ids"], tensors["responses"].shape[-1])[name]
    return mine.data_ptr() == part.data_ptr() and mine.shape == part.shape and mine.stride() == part.stride()


def token_counts(mask: Tensor) -> np.ndarray:
    """(B,) int64: the ones of every row of a mask (B, T) of whole numbers."""
    if mask.element_size() > 1 or mask.is_floating_point():
        return mask.sum(dim=-1).long().numpy()
    return np.array([np.count_nonzero(row) for row in mask.view(torch.bool).numpy()], dtype=np.int64)


def per_row(values: Tensor, mask: Tensor) -> Tensor:
    """(B, T) float32: the number of a row (B,) times `mask` (B, T)."""
    if mask.is_floating_point():  # verl's correction for rollouts may have made it so
        return values.unsqueeze(-1) * mask
    out = zeros(mask.shape, torch.float32)
    for to, of, value in zip(out.numpy(), mask.numpy(), values.float().numpy(), strict=True):
        end = of.tobytes().rfind(b"\x01") // of.itemsize + 1
        np.multiply(of[:end], value, out=to[:end])
    return out


def _copy_spans(source: Source, name: str, out: Tensor) -> None:
    firsts, ends = source.spans[source.picked].within(name)  # type: ignore[index]
    of, to = numbers_of(source.tensors[name].to(out.dtype)), numbers_of(out)
    for row, position, first, end in zip(source.picked.tolist(), source.positions.tolist(), firsts, ends, strict=True):
        to[position, first:end] = of[row, first:end]


def _copy_rows(source: Source, name: str, out: Tensor) -> None:
    values = source.tensors[name]
    picked, positions = torch.from_numpy(source.picked).long(), torch.from_numpy(source.positions).long()
    for some, to in zip(picked.split(BLOCK), positions.split(BLOCK), strict=True):
        out.index_copy_(0, to, values[some].to(out.dtype))


def numbers_of(tensor: Tensor) -> np.ndarray:
    """The tensor's memory as numpy sees it: for rows one by one far quicker than torch. Of bfloat16, which it lacks, the bits."""
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()
