"""Give a tuned matrix back some of its base's singular values or vectors, and the controls that say what this is worth.

With base b and tuned t, W = Σ s_i u_i v_iᵀ, and I the first `top` and last `tail` indices, a restored matrix is the tuned one
with its part in I replaced:

    vector      s_b u_b v_bᵀ                                what the published tool calls restoring vectors: values come along
    direction   s_t u_b v_bᵀ
    values      s_b u_t v_tᵀ
    aligned     (U_b R_U) diag(s_t) (V_b R_V)ᵀ              R the polar factors of U_bᵀU_t and V_bᵀV_t; the top alone

The first three match vectors by their index, which is arbitrary where singular values are nearly equal. `aligned` moves the
subspace as a whole and does not depend on the basis inside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import ROUND_CEILING, Decimal

import torch
from torch import Tensor

from unify_posttrain.analysis.weights.svd import Decomposition, combine, decompose, polar, relative_gaps

INDEX_MATCHED = ("vector", "direction", "values")
ALIGNED = "aligned"
MODES = (*INDEX_MATCHED, ALIGNED)


def count(share: int | float, rank: int) -> int:
    """How many of `rank` indices a setting means: a whole number as it is, a fraction rounded up; never more than there are.

    The fraction is read as it is written: 0.1 of 30 is 3, though 0.1 · 30 in floats is a little more.
    """
    if isinstance(share, float):
        return min(rank, int((Decimal(str(share)) * rank).to_integral_value(ROUND_CEILING)))
    return min(rank, share)


def indices(rank: int, top: int | float, tail: int | float) -> Tensor:
    """I, ascending: the first `top`, then the last `tail` of those that are left."""
    first = count(top, rank)
    last = min(count(tail, rank), rank - first)
    return torch.tensor([*range(first), *range(rank - last, rank)], dtype=torch.long)


def random_indices(rank: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` different indices, ascending: the control of an index set."""
    return torch.randperm(rank, generator=generator)[:size].sort().values


def restore(mode: str, base: Decomposition, tuned: Decomposition, matrix: Tensor, index: Tensor) -> Tensor:
    """The restored matrix.

    Args:
        mode: of the table above.
        base, tuned: decompositions of the two matrices.
        matrix: (m, n) the tuned one itself: what is outside of `index` stays as it is, without a trip through the decomposition.
        index: (k,) of I; for `aligned` 0..k-1.

    Returns:
        (m, n) in the precision of the decompositions.
    """
    kept = matrix.to(tuned.s.dtype)
    if not len(index):
        return kept
    index = index.to(kept.device)
    u_b, v_b, u_t, v_t = base.u[:, index], base.v[:, index], tuned.u[:, index], tuned.v[:, index]
    if mode == "vector":
        part = combine(u_b, base.s[index], v_b)
    elif mode == "direction":
        part = combine(u_b, tuned.s[index], v_b)
    elif mode == "values":
        part = combine(u_t, base.s[index], v_t)
    elif mode == ALIGNED:
        part = combine(u_b @ polar(u_b.mT @ u_t), tuned.s[index], v_b @ polar(v_b.mT @ v_t))
    else:
        raise ValueError(f"mode={mode} is unknown; choose one of {', '.join(MODES)}")
    return kept - tuned.part(index) + part


def interpolate(base: Tensor, tuned: Tensor, share: float) -> Tensor:
    """(1 - share) · tuned + share · base: the straight way back."""
    return tuned + share * (base - tuned)


def drop(base: Tensor, tuned: Tensor, size: int, delta: Decomposition | None = None) -> Tensor:
    """The tuned matrix without the first `size` parts of the SVD of ΔW = tuned - base: a way back that matches nothing.

    Args:
        delta: the decomposition of ΔW, if it is there already.
    """
    delta = decompose(tuned - base, tuned.dtype) if delta is None else delta
    return tuned - delta.part(torch.arange(size, device=tuned.device))


def close_cuts(base: Decomposition, tuned: Decomposition, index: Tensor, gap: float) -> int:
    """At how many edges of I the vectors on both sides could be exchanged: a relative gap under `gap` in the base or the tuned
    matrix."""
    inside = torch.zeros(base.rank, dtype=torch.bool)
    inside[index] = True
    edges = (inside[:-1] != inside[1:]).to(base.s.device)
    return int((edges & ((relative_gaps(base.s) < gap) | (relative_gaps(tuned.s) < gap))).sum())


def left(restored: Sequence[float], whole: Sequence[float]) -> float | None:
    """‖restored - base‖ / ‖tuned - base‖ over matrices; None if nothing was tuned.

    Args:
        restored, whole: squared Frobenius norms of the two differences, one per matrix.
    """
    total = sum(whole)
    return float((sum(restored) / total) ** 0.5) if total else None
