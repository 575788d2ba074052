"""How far singular subspaces turned between two matrices, and what ΔW is in the base's frame. Angles are in radians here."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unify_posttrain.analysis.weights.svd import Decomposition, relative_gaps


def principal_angles(first: Tensor, second: Tensor) -> Tensor:
    """(k,) principal angles between two subspaces, ascending, each in [0, π/2].

    From the cosines where the angle is large, from the sines where it is small: the arccos of a number near 1 loses half of the
    digits (in float32, equal subspaces came out up to 0.07 degrees apart).

    Args:
        first, second: (n, k) orthonormal columns.
    """
    first, second = first.double(), second.double()
    inner = first.mT @ second
    cosines = torch.linalg.svdvals(inner).clamp(max=1.0)
    sines = torch.linalg.svdvals(second - first @ inner).flip(0).clamp(max=1.0)
    return torch.where(cosines**2 >= 0.5, torch.asin(sines), torch.acos(cosines))


def projector_distance(angles: Tensor) -> float:
    """‖P - Q‖_F of the projectors onto two subspaces with these principal angles."""
    return float(math.sqrt(2.0) * torch.sin(angles).norm())


def rank_angles(base: Decomposition, tuned: Decomposition, side: str, gap: float) -> Tensor:
    """(r,) angles between singular vectors of the same index; NaN where a neighbour is closer than the relative gap `gap`, in
    either matrix: the vector is not determined there.

    Args:
        side: u or v.
    """
    first, second = getattr(base, side).double(), getattr(tuned, side).double()
    signs = torch.where((first * second).sum(0) < 0, -1.0, 1.0)
    chord = (first - signs * second).norm(dim=0)  # of a small angle it keeps the digits that the arccos of an inner product loses
    angles = 2 * torch.asin((chord / 2).clamp(max=1.0))
    close = torch.zeros(base.rank, dtype=torch.bool, device=angles.device)
    for s in (base.s, tuned.s):
        near = relative_gaps(s) < gap
        close[:-1] |= near
        close[1:] |= near
    return angles.masked_fill(close, float("nan"))


@dataclass(frozen=True)
class Energies:
    """Shares of ‖ΔW‖² in the base's frame, C = U_bᵀ ΔW V_b: its diagonal (`scaling` of the base's own parts) and the rest of it
    (`rotation`). What is left to 1 lies outside of the frame."""

    scaling: float
    rotation: float


def energies(base: Decomposition, delta: Tensor, k: int | None = None) -> Energies:
    """Of ΔW (m, n), in the frame of the first k vectors (None: all); 0 and 0 if ΔW is 0."""
    whole = float(delta.double().square().sum())
    if whole == 0:
        return Energies(0.0, 0.0)
    u, v = base.u[:, :k].double(), base.v[:, :k].double()
    inside = u.mT @ delta.double() @ v
    scaling = float(inside.diagonal().square().sum())
    return Energies(scaling / whole, max(0.0, float(inside.square().sum()) - scaling) / whole)


def value_changes(base: Decomposition, tuned: Decomposition) -> Tensor:
    """(r,) (s_t - s_b) / s_b; NaN where s_b is numerically 0 (under r · machine precision of the largest)."""
    smallest = base.rank * torch.finfo(base.s.dtype).eps * float(base.s[0])
    changes = (tuned.s - base.s).double() / base.s.double()
    return changes.masked_fill(base.s <= smallest, float("nan"))
