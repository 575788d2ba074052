"""Principal angles, energies and null lines against numbers worked out by hand or by an independent script."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.analysis.test_restore import BASE, TUNED, diagonal
from unify_posttrain.analysis.weights.angles import (
    energies,
    principal_angles,
    projector_distance,
    rank_angles,
    value_changes,
)
from unify_posttrain.analysis.weights.measures import BaseMatrix, Precision, binned, measure
from unify_posttrain.analysis.weights.nulls import (
    looks_random,
    noise_like,
    random_angles,
    random_smallest_angle,
    seeded,
    zero_by_dimension,
)
from unify_posttrain.analysis.weights.svd import Decomposition, decompose

HOW = Precision(
    subspaces=(1, 2), gap=1e-3, per_rank=4, bins=4, random_tolerance=0.05, seed=0, dtype=torch.float64, device=torch.device("cpu")
)


def degrees(angles: Tensor) -> list[float]:
    return angles.rad2deg().tolist()


def spans(*columns: list[float]) -> Tensor:
    return torch.tensor(columns, dtype=torch.float64).T


# Angles


def test_the_rotated_diagonal() -> None:
    base, tuned = decompose(BASE), decompose(TUNED)
    assert degrees(principal_angles(base.u[:, :1], tuned.u[:, :1])) == pytest.approx([30])
    assert degrees(principal_angles(base.u[:, :2], tuned.u[:, :2])) == pytest.approx([0, 0], abs=1e-9)
    for k in (1, 2, 3, 4):
        assert degrees(principal_angles(base.v[:, :k], tuned.v[:, :k])) == pytest.approx([0] * k, abs=1e-9)


def test_the_matrix_that_is_not_square() -> None:
    base = decompose(torch.tensor([[2.0, 0], [0, 1], [0, 0]]))
    tuned = decompose(torch.tensor([[0.0, 1], [2, 0], [0, 0]]))
    assert degrees(principal_angles(base.u[:, :1], tuned.u[:, :1])) == pytest.approx([90])
    assert degrees(principal_angles(base.u, tuned.u)) == pytest.approx([0, 0], abs=1e-9)


def test_two_planes_that_share_a_line() -> None:
    cos, sin = math.cos(math.radians(30)), math.sin(math.radians(30))
    angles = principal_angles(spans([1, 0, 0], [0, 1, 0]), spans([1, 0, 0], [0, cos, sin]))
    assert degrees(angles) == pytest.approx([0, 30], abs=1e-9)
    assert projector_distance(angles) == pytest.approx(0.70710678, abs=1e-8)


def test_a_small_angle_is_not_lost() -> None:
    tiny = 1e-6
    angles = principal_angles(spans([1, 0, 0], [0, 1, 0]), spans([1, 0, 0], [0, math.cos(tiny), math.sin(tiny)]))
    assert angles.tolist() == pytest.approx([0, tiny], rel=1e-6, abs=1e-12)
    inner = spans([0, 1, 0]).float().T @ spans([0, math.cos(tiny), math.sin(tiny)]).float()
    assert float(torch.acos(inner.clamp(max=1))) == 0.0  # what the arccos of float32 makes of it


def test_angles_per_rank_are_unknown_where_vectors_are_arbitrary() -> None:
    base, tuned = decompose(BASE), decompose(TUNED)
    assert degrees(rank_angles(base, tuned, "u", 1e-3)) == pytest.approx([30, 30, 0, 0], abs=1e-6)
    assert degrees(rank_angles(base, tuned, "v", 1e-3)) == pytest.approx([0, 0, 0, 0], abs=1e-6)
    even = rank_angles(decompose(diagonal(4, 2.001, 2, 1)), tuned, "u", 1e-3)
    assert [value != value for value in even.tolist()] == [False, True, True, False]
    assert [value != value for value in rank_angles(base, decompose(diagonal(4, 2, 1, 1)), "u", 1e-3).tolist()] == [
        False, False, True, True,
    ]  # fmt: skip


def test_a_sign_is_no_angle() -> None:
    base = decompose(BASE)
    flipped = Decomposition(-base.u, base.s, -base.v)
    assert degrees(rank_angles(base, flipped, "u", 1e-3)) == pytest.approx([0] * 4)


# Energies and values


@pytest.mark.parametrize(("k", "scaling", "rotation"), [(4, 0.0138360, 0.9861640), (2, 0.0073159, 0.9861640)])
def test_energies(k: int, scaling: float, rotation: float) -> None:
    found = energies(decompose(BASE), TUNED - BASE, k)
    assert (found.scaling, found.rotation) == pytest.approx((scaling, rotation), abs=5e-8)


def test_no_change_has_no_energy() -> None:
    found = energies(decompose(BASE), torch.zeros_like(BASE))
    assert (found.scaling, found.rotation) == (0.0, 0.0)


def test_changes_of_values_are_relative() -> None:
    assert value_changes(decompose(BASE), decompose(TUNED)).tolist() == pytest.approx([0.1] * 4)
    gone = value_changes(decompose(diagonal(1, 0, 0)), decompose(diagonal(2, 1, 0))).tolist()
    assert gone[0] == pytest.approx(1.0) and all(value != value for value in gone[1:])


# Nulls


@pytest.mark.parametrize(("n", "k", "expected"), [(4096, 512, 48.59), (4096, 768, 38.68), (4096, 1024, 30.00), (3584, 768, 34.85)])
def test_random_subspaces_by_the_formula(n: int, k: int, expected: float) -> None:
    assert math.degrees(random_smallest_angle(n, k)) == pytest.approx(expected, abs=0.005)


def test_random_subspaces_by_a_draw() -> None:
    assert float(random_angles(256, 64, 0)[0].rad2deg()) == pytest.approx(30.0, abs=1.0)  # another draw: 29.6
    assert torch.equal(random_angles(40, 8, 3), random_angles(40, 8, 3))
    assert not torch.equal(random_angles(40, 8, 3), random_angles(40, 8, 4))


def test_subspaces_that_must_meet() -> None:
    assert (zero_by_dimension(10, 5), zero_by_dimension(10, 7), random_smallest_angle(10, 7)) == (0, 4, 0.0)
    assert degrees(random_angles(10, 7, 0))[:4] == pytest.approx([0] * 4, abs=1e-6)


def test_noise_has_the_norm_of_the_change() -> None:
    delta = TUNED - BASE
    noise = noise_like(delta, seeded(0, "noise", "a"))
    assert float(noise.norm()) == pytest.approx(float(delta.norm()))
    assert torch.equal(noise, noise_like(delta, seeded(0, "noise", "a")))
    assert not torch.equal(noise, noise_like(delta, seeded(0, "noise", "b")))


def test_untrained_matrices_are_told() -> None:
    generator = torch.Generator().manual_seed(0)
    random = 0.02 * torch.randn(300, 200, generator=generator)
    assert looks_random(random, float(torch.linalg.svdvals(random)[0]), 0.05)
    trained = random + 0.02 * torch.outer(torch.randn(300, generator=generator), torch.randn(200, generator=generator))
    assert not looks_random(trained, float(torch.linalg.svdvals(trained)[0]), 0.05)
    assert not looks_random(torch.zeros(3, 3), 0.0, 0.05)


# One matrix


def test_what_is_kept_of_a_matrix() -> None:
    found = measure(BaseMatrix("a", BASE, HOW), TUNED, "angles")
    first, second = found["subspaces"]
    assert first["left"]["largest"] == pytest.approx(30) and second["left"]["largest"] == pytest.approx(0, abs=1e-6)
    assert (
        first["left_noise"]["mean"] > 0
        and first["left_random"]["smallest"] > 0
        and first["left_random"]["formula"] == pytest.approx(30)
    )
    assert second["left_zero_by_dimension"] == 0
    assert [part["k"] for part in found["energies"]] == [1, 2, 4]
    assert found["size"] == pytest.approx(float((TUNED - BASE).norm() / BASE.norm()))
    assert found["per_rank"]["left"] == pytest.approx([30, 30, 0, 0], abs=1e-6)


def test_the_spectrum_of_a_matrix() -> None:
    found = measure(BaseMatrix("a", BASE, HOW), TUNED, "spectrum")
    assert found["values"]["tuned"]["overall"] == pytest.approx(0.1)
    assert found["values"]["noise"]["overall"] > 0
    assert found["per_rank"]["tuned"] == pytest.approx([0.1] * 4)


def test_no_change_gives_zeros() -> None:
    """Not numbers as small as rounding errors, and no noise, which would have norm 0."""
    for what in ("angles", "spectrum"):
        found = measure(BaseMatrix("a", BASE, HOW), BASE, what)
        assert found["size"] == 0.0
        assert {(part["scaling"], part["rotation"]) for part in found["energies"]} == {(0.0, 0.0)}
    assert measure(BaseMatrix("a", BASE, HOW), BASE, "angles")["subspaces"][0]["left"] == {"smallest": 0, "mean": 0, "largest": 0}
    assert measure(BaseMatrix("a", BASE, HOW), BASE, "spectrum")["values"]["tuned"]["largest"] == 0.0


def test_curves_are_means_of_equal_parts() -> None:
    assert binned([1.0, 3.0, None, 5.0], 2) == [2.0, 5.0]
    assert binned([1.0, 2.0], 4) == [1.0, None, 2.0, None]
