"""The thin singular value decomposition that all of this room is about, and what makes its vectors arbitrary."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Decomposition:
    """W = Σ s_i u_i v_iᵀ of an (m, n) matrix, r = min(m, n).

    Attributes:
        u: (m, r), orthonormal columns.
        s: (r,), descending.
        v: (n, r), orthonormal columns.
    """

    u: Tensor
    s: Tensor
    v: Tensor

    @property
    def rank(self) -> int:
        """r = min(m, n)."""
        return len(self.s)

    def part(self, index: Tensor) -> Tensor:
        """Σ over `index` of s_i u_i v_iᵀ: (m, n)."""
        return combine(self.u[:, index], self.s[index], self.v[:, index])


def decompose(matrix: Tensor, dtype: torch.dtype = torch.float64) -> Decomposition:
    """Thin SVD of an (m, n) matrix in `dtype`, on the matrix's device."""
    u, s, vh = torch.linalg.svd(matrix.to(dtype), full_matrices=False)
    return Decomposition(u, s, vh.mT)


def combine(u: Tensor, s: Tensor, v: Tensor) -> Tensor:
    """u diag(s) vᵀ: (m, k), (k,), (n, k) -> (m, n)."""
    return (u * s) @ v.mT


def polar(matrix: Tensor) -> Tensor:
    """The orthogonal factor of a (k, k) matrix: the rotation that is nearest to it."""
    u, _, vh = torch.linalg.svd(matrix)
    return u @ vh


def relative_gaps(s: Tensor) -> Tensor:
    """(r - 1,) gaps between neighbours, relative to the larger one; 0 between two zeros.

    A gap of 0 means that the two vectors can be turned into each other without changing the matrix: which ones an SVD returns is
    chance.
    """
    larger = s[:-1]
    return torch.where(larger > 0, (larger - s[1:]) / larger.clamp_min(torch.finfo(s.dtype).tiny), torch.zeros_like(larger))
