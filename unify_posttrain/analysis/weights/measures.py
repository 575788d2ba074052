"""The numbers of one matrix pair, as plain data: what matrices.jsonl holds. Angles are in degrees here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from unify_posttrain.analysis.weights.angles import energies, principal_angles, rank_angles, value_changes
from unify_posttrain.analysis.weights.nulls import (
    looks_random,
    noise_like,
    random_angles,
    random_smallest_angle,
    seeded,
    zero_by_dimension,
)
from unify_posttrain.analysis.weights.restore import count
from unify_posttrain.analysis.weights.svd import Decomposition, decompose

SIDES = {"left": "u", "right": "v"}


@dataclass(frozen=True)
class Precision:
    """How matrices are measured.

    Attributes:
        subspaces: sizes k of the subspaces, as :func:`count` reads them.
        gap: relative gap under which a singular vector is not determined.
        per_rank: how many of the first ranks are kept one by one.
        bins: points of a curve over all ranks.
        random_tolerance: of the flag `looks_random`.
        seed: of noise and random subspaces.
        dtype: of the decompositions.
        device: where they are computed.
    """

    subspaces: tuple[int | float, ...]
    gap: float
    per_rank: int
    bins: int
    random_tolerance: float
    seed: int
    dtype: torch.dtype
    device: torch.device

    def take(self, matrix: Tensor) -> Tensor:
        """A matrix as it is worked on."""
        return matrix.to(self.device, self.dtype)


class BaseMatrix:
    """A matrix of the base and its decomposition, which all tuned models share."""

    def __init__(self, name: str, matrix: Tensor, how: Precision) -> None:
        self.name, self.how = name, how
        self.matrix = how.take(matrix)
        self.parts = decompose(self.matrix, how.dtype)
        self.random = looks_random(self.matrix, float(self.parts.s[0]), how.random_tolerance)

    def noisy(self, delta: Tensor) -> tuple[Tensor, Decomposition]:
        """Noise of ΔW's norm, and the decomposition of base + noise. The same for every analysis of this matrix with this seed."""
        noise = noise_like(delta, seeded(self.how.seed, "noise", self.name))
        return noise, decompose(self.matrix + noise, self.how.dtype)


def measure(base: BaseMatrix, tuned: Tensor, what: str) -> dict[str, Any]:
    """What a tuned (m, n) matrix is beside its base, and beside its base with noise of the same size.

    Args:
        base: the base's matrix.
        tuned: of the tuned model, as it was read.
        what: angles or spectrum.
    """
    how = base.how
    tuned = how.take(tuned)
    delta = tuned - base.matrix
    norm, whole = float(delta.double().norm()), float(base.matrix.double().norm())
    parts = decompose(tuned, how.dtype)
    noise, noisy = base.noisy(delta) if norm else (delta, base.parts)
    function = _angles if what == "angles" else _spectrum
    ks = sorted({k for share in how.subspaces if (k := count(share, base.parts.rank))})
    return {
        "size": norm / whole if whole else None,
        "looks_random": looks_random(tuned, float(parts.s[0]), how.random_tolerance),
        "energies": _energies(base.parts, delta, ks),
        "energies_noise": _energies(base.parts, noise, ks),
        **function(base.parts, parts if norm else base.parts, noisy, ks, how),
    }


def _energies(base: Decomposition, delta: Tensor, ks: Sequence[int]) -> list[dict[str, Any]]:
    return [{"k": k, **asdict(energies(base, delta, k))} for k in sorted({*ks, base.rank})]


def _angles(base: Decomposition, tuned: Decomposition, noisy: Decomposition, ks: Sequence[int], how: Precision) -> dict[str, Any]:
    by_rank = {
        f"{side}{end}": rank_angles(base, other, letter, how.gap) * (0.0 if other is base else 1.0)
        for side, letter in SIDES.items()
        for end, other in (("", tuned), ("_noise", noisy))
    }
    return {
        "subspaces": [_subspace(base, tuned, noisy, k, how.seed) for k in ks],
        "per_rank": {name: _degrees(values[: how.per_rank]) for name, values in by_rank.items()},
        "undetermined": {name: int(values.isnan().sum()) for name, values in by_rank.items()},
        "curve": {name: binned(_degrees(values), how.bins) for name, values in by_rank.items()},
    }


def _subspace(base: Decomposition, tuned: Decomposition, noisy: Decomposition, k: int, seed: int) -> dict[str, Any]:
    found: dict[str, Any] = {"k": k}
    for side, letter in SIDES.items():
        first = getattr(base, letter)[:, :k]
        n = len(first)
        for end, other in (("", tuned), ("_noise", noisy)):
            # Numbers as small as the rounding errors would stand for nothing where the two are one matrix.
            angles = torch.zeros(k) if other is base else principal_angles(first, getattr(other, letter)[:, :k])
            found[f"{side}{end}"] = _summary(angles)
        found[f"{side}_random"] = {
            "formula": math.degrees(random_smallest_angle(n, k)),
            "smallest": float(random_angles(n, k, seed)[0].rad2deg()),
            "mean": float(random_angles(n, k, seed).rad2deg().mean()),
        }
        found[f"{side}_zero_by_dimension"] = zero_by_dimension(n, k)
    return found


def _summary(angles: Tensor) -> dict[str, float]:
    degrees = angles.rad2deg()
    return {"smallest": float(degrees[0]), "mean": float(degrees.mean()), "largest": float(degrees[-1])}


def _degrees(angles: Tensor) -> list[float | None]:
    return [None if value != value else value for value in angles.rad2deg().tolist()]


def _spectrum(base: Decomposition, tuned: Decomposition, noisy: Decomposition, ks: Sequence[int], how: Precision) -> dict[str, Any]:
    found: dict[str, Any] = {"values": {}, "per_rank": {}, "curve": {}}
    for end, other in (("tuned", tuned), ("noise", noisy)):
        changes = value_changes(base, other)
        known = changes[~changes.isnan()].abs()
        whole = float(base.s.double().norm())
        found["values"][end] = {
            "overall": float((other.s - base.s).double().norm()) / whole if whole else None,
            "mean": float(known.mean()) if len(known) else None,
            "largest": float(known.max()) if len(known) else None,
        }
        values = [None if value != value else value for value in changes.tolist()]
        found["per_rank"][end] = values[: how.per_rank]
        found["curve"][end] = binned(values, how.bins)
    return found


def binned(values: Sequence[float | None], bins: int) -> list[float | None]:
    """Means of `bins` equal parts of the ranks, so that matrices of all sizes share an axis; None where nothing is known."""
    parts: list[list[float]] = [[] for _ in range(bins)]
    for number, value in enumerate(values):
        if value is not None:
            parts[number * bins // len(values)].append(value)
    return [sum(part) / len(part) if part else None for part in parts]


def mean_of(values: Sequence[float | None]) -> float | None:
    """Mean of what is known; None if nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def at(entries: Sequence[Mapping[str, Any]], position: int) -> Mapping[str, Any]:
    """The entry of the same place in the list of sizes; the last one where a small matrix has fewer."""
    return entries[min(position, len(entries) - 1)]
