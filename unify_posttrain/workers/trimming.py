"""Columns that are padding in every row of a micro-batch, left out of the forward pass.

Rows are padded to `data.max_prompt_length` + `data.max_response_length`, however short the rows of a micro-batch are. Where rows
are packed (`use_remove_padding`) that costs nothing; on a CPU, where they cannot be, padding is computed as tokens are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

from torch import Tensor
from torch.nn.functional import pad

WHOLE = ("input_ids", "attention_mask", "position_ids")  # of prompt and response, in the last dimension
OF_RESPONSES = ("responses", "response_mask", "prefix_mask")  # what a forward pass reads of responses alone

Forward = Callable[[Mapping[str, Any]], dict[str, Tensor]]


def on_trimmed(forward: Forward, micro_batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run `forward` on a micro-batch without the columns that nobody attends to.

    Args:
        forward: returns (B, T') for the T' response columns that it was given.
        micro_batch: verl's streams; B rows, T response columns.

    Returns:
        (B, T) by name, zeros in the columns that were left out.
    """
    first, last = kept_columns(micro_batch["attention_mask"], micro_batch["responses"].shape[-1])
    width = micro_batch["responses"].shape[-1]
    prompt = micro_batch["attention_mask"].shape[-1] - width
    cut = {name: micro_batch[name][..., first : prompt + last] for name in WHOLE}
    cut |= {name: micro_batch[name][..., :last] for name in OF_RESPONSES if name in micro_batch}
    outputs = forward({**micro_batch, **cut})
    return {name: pad(value, (0, width - last)) for name, value in outputs.items()}


def narrow_cuts(lengths: Sequence[int], most: int) -> list[int]:
    """Where to cut rows into micro-batches so that the fewest columns are computed: few long rows take a small one for themselves.

    Args:
        lengths: (B,) attended columns of each row, rows of similar lengths beside each other, the shortest ones first.
        most: rows of a micro-batch. There are as many micro-batches as verl cuts, ceil(B / most), so that ranks with as many rows
            agree.

    Returns:
        The ends of the micro-batches, B the last one. As verl cuts them where nothing is saved.
    """
    rows, parts = len(lengths), -(-len(lengths) // most)
    widest = list(accumulate(lengths, max))
    reached: dict[int, tuple[int, list[int]]] = {0: (0, [])}  # end of a part -> columns computed so far, the ends before
    for part in range(1, parts + 1):
        left = parts - part
        ends = range(max(part, rows - left * most), min(part * most, rows - left) + 1)
        reached = {
            end: min(
                (cost + (end - start) * widest[end - 1], -start, [*cuts, end])
                for start, (cost, cuts) in reached.items()
                if 0 < end - start <= most
            )[::2]
            for end in ends
        }
    return reached[rows][1]


def kept_columns(attention_mask: Tensor, width: int) -> tuple[int, int]:
    """Where the prompts begin, and how many response columns are attended to in any row.

    Args:
        attention_mask: (B, P + T).
        width: T.

    Returns:
        first column, at most P - 1: the last prompt column predicts the first response token; response columns, at least 1.
    """
    used = attention_mask.bool().any(dim=0).long()
    prompt = len(used) - width
    first = int(used[:prompt].argmax()) if bool(used[:prompt].any()) else prompt - 1
    columns = used[prompt:].nonzero()
    return first, int(columns[-1]) + 1 if len(columns) else 1
