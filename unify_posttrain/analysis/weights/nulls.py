"""What chance alone does to the numbers of this room. No angle means anything without them."""

from __future__ import annotations

import hashlib
import math
from functools import lru_cache

import torch
from torch import Tensor

from unify_posttrain.analysis.weights.angles import principal_angles


def seeded(seed: int, *names: object) -> torch.Generator:
    """A generator of its own for everything that has a name, so that no order and no restart changes what is drawn."""
    digest = hashlib.sha256("\0".join(map(str, (seed, *names))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def random_smallest_angle(n: int, k: int) -> float:
    """The smallest principal angle between two random k-dimensional subspaces of n dimensions, for large n: arccos √(4a(1 - a)),
    a = k/n. From half of the dimensions on it is 0, since at least 2k - n of the angles are.

    >>> round(math.degrees(random_smallest_angle(4096, 512)), 2)
    48.59
    """
    share = k / n
    return 0.0 if 2 * k >= n else math.acos(math.sqrt(4 * share * (1 - share)))


def zero_by_dimension(n: int, k: int) -> int:
    """How many of the k angles between any two k-dimensional subspaces of n dimensions must be 0."""
    return max(0, 2 * k - n)


@lru_cache(maxsize=64)  # matrices of one shape share the draw
def random_angles(n: int, k: int, seed: int) -> Tensor:
    """(k,) principal angles between two subspaces that are drawn with the seed."""
    generator = seeded(seed, "subspaces", n, k)
    bases = (torch.linalg.qr(torch.randn(n, k, generator=generator, dtype=torch.float64)).Q for _ in range(2))
    return principal_angles(*bases)


def noise_like(delta: Tensor, generator: torch.Generator) -> Tensor:
    """Gaussian noise with the Frobenius norm of `delta` (m, n): an update of the same size without structure."""
    noise = torch.randn(delta.shape, generator=generator, dtype=torch.float64).to(delta.device)
    return (noise * (delta.double().norm() / noise.norm())).to(delta.dtype)


def looks_random(matrix: Tensor, largest: float, tolerance: float) -> bool:
    """Whether the largest singular value is what independent entries of the same deviation would have, std · (√m + √n): then
    there is nothing in the matrix that training could have turned.

    Args:
        matrix: (m, n).
        largest: its largest singular value.
        tolerance: relative.
    """
    rows, columns = matrix.shape
    expected = float(matrix.double().std(correction=0)) * (math.sqrt(rows) + math.sqrt(columns))
    return expected > 0 and abs(largest - expected) <= tolerance * expected
