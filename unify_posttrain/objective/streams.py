"""Named (B, T) and (B,) tensors that travel with a batch: verl's own keys plus the few that a batch plan adds.

==================  =======  =====================================================================================
name                shape    meaning
==================  =======  =====================================================================================
log_probs           (B, T)   log π_θ of the response tokens, carries the gradient (the only one that does, with entropys)
old_log_probs       (B, T)   log-probabilities at the start of the step
ref_log_prob        (B, T)   log-probabilities of the frozen reference model (KL terms)
entropys            (B, T)   token entropies H of π_θ
advantages          (B, T)   Â as computed by verl on the mixed groups
response_mask       (B, T)   m: 1 on trained tokens
prefix_mask         (B, T)   P: true on off-policy target tokens; absent means none
`NAME_weight`       (B,)     coefficient of a row in the term NAME, from the batch plan
uniforms            (B, T)   numbers in [0, 1) for the `reject` shape
target_probs        (B, T)   teacher probabilities for the `target_prob` shape
scores              (B,)     R: score of the row (Online SFT's pseudo-loss)
solved, unsolved    (B,)     1 for rows that count as solved, and its complement (SRFT)
batch_entropy       (B,)     mean entropy of the row's mini-batch at the start of the step (SRFT)
==================  =======  =====================================================================================

`prefix_mask` marks whole demonstrations and hints as well as prefixes. It keeps its name because that is the field's name for
off-policy target tokens: the released codes of LUFFY and HPT, and those that build on them, use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

TOKEN_CLASSES = ("on", "demo", "hint", "trained")
TARGET_CLASSES = ("demo", "hint")  # tokens of a target, which only `prefix_mask` tells from the policy's own


def stream(tensors: Mapping[str, Tensor], name: str, user: object) -> Tensor:
    """Look up a stream; a missing one is an error that names the stream and who needs it, never a silent default."""
    if name not in tensors:
        raise KeyError(f"stream {name!r} is missing from the batch and {user!r} needs it; present: {sorted(tensors.keys())}")
    return tensors[name]


def token_class(tensors: Mapping[str, Tensor], which: str) -> Tensor:
    """Boolean (B, T) mask of a token class.

    | class   | m (response_mask) | P (prefix_mask) | what it is |
    |---------|---|---|------------------------------------------|
    | on      | 1 | 0 | sampled by the policy                    |
    | demo    | 1 | 1 | trained token of a demonstration         |
    | hint    | 0 | 1 | attended target token that is not trained by RL |
    | trained | 1 | * | on and demo together                     |

    Without `prefix_mask` nothing is `demo` or `hint`. That answers for statistics; what is trained asks `Members.mask`, which
    insists on the mask.

    Raises:
        ValueError: unknown class.
        KeyError: no `response_mask`.
    """
    mask = stream(tensors, "response_mask", f"token class {which!r}").bool()
    if which == "trained":
        return mask
    prefix = tensors["prefix_mask"].bool() if "prefix_mask" in tensors else torch.zeros_like(mask)
    if which == "on":
        return mask & ~prefix
    if which == "demo":
        return mask & prefix
    if which == "hint":
        return ~mask & prefix
    raise ValueError(f"unknown token class {which!r}; choose one of {', '.join(TOKEN_CLASSES)}")
