"""Restorations against the vectors of the specification, worked out by hand or by an independent script."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unify_posttrain.analysis.weights.restore import (
    INDEX_MATCHED,
    MODES,
    close_cuts,
    count,
    drop,
    indices,
    interpolate,
    left,
    random_indices,
    restore,
)
from unify_posttrain.analysis.weights.svd import decompose, polar, relative_gaps


def diagonal(*values: float) -> Tensor:
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def turned(degrees: float) -> Tensor:
    """G: a rotation in the plane (e1, e2) of four dimensions."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:2, :2] = torch.tensor([[cos, -sin], [sin, cos]])
    return matrix


BASE = diagonal(4, 3, 2, 1)
TUNED = turned(30) @ diagonal(4.4, 3.3, 2.2, 1.1)


def restored(mode: str, top: int, tail: int, base: Tensor = BASE, tuned: Tensor = TUNED) -> Tensor:
    first, second = decompose(base), decompose(tuned)
    return restore(mode, first, second, tuned, indices(first.rank, top, tail))


def close(found: Tensor, expected: list[list[float]] | Tensor) -> bool:
    return torch.allclose(found, torch.as_tensor(expected, dtype=found.dtype), atol=2e-6)


# In the plane (e1, e2): column 1 of the tuned matrix is 4.4 (cos 30, sin 30), column 2 3.3 (-sin 30, cos 30) = (-1.65, 2.857884).


@pytest.mark.parametrize(
    ("mode", "top", "tail", "expected"),
    [
        ("vector", 4, 0, BASE),
        ("vector", 2, 0, diagonal(4, 3, 2.2, 1.1)),
        ("vector", 1, 1, [[4, -1.65, 0, 0], [0, 2.857884, 0, 0], [0, 0, 2.2, 0], [0, 0, 0, 1]]),
        ("direction", 4, 0, diagonal(4.4, 3.3, 2.2, 1.1)),
        ("direction", 2, 0, diagonal(4.4, 3.3, 2.2, 1.1)),
        ("direction", 1, 0, [[4.4, -1.65, 0, 0], [0, 2.857884, 0, 0], [0, 0, 2.2, 0], [0, 0, 0, 1.1]]),
        ("values", 4, 0, TUNED / 1.1),
        ("values", 1, 1, [[3.464102, -1.65, 0, 0], [2, 2.857884, 0, 0], [0, 0, 2.2, 0], [0, 0, 0, 1]]),
        ("aligned", 1, 0, [[4.4, -1.65, 0, 0], [0, 2.857884, 0, 0], [0, 0, 2.2, 0], [0, 0, 0, 1.1]]),
        ("aligned", 2, 0, TUNED),
        ("aligned", 4, 0, TUNED),
        *((mode, 0, 0, TUNED) for mode in MODES),
    ],
)
def test_the_rotated_diagonal(mode: str, top: int, tail: int, expected: list[list[float]] | Tensor) -> None:
    assert close(restored(mode, top, tail), expected)


def test_nothing_restored_is_the_tuned_matrix_to_the_last_bit() -> None:
    for mode in MODES:
        assert torch.equal(restored(mode, 0, 0), TUNED)


@pytest.mark.parametrize("angle", [0.0, 17.0, 60.0])
def test_aligned_does_not_depend_on_the_basis_of_a_degenerate_subspace(angle: float) -> None:
    """Base diag(3,3,1), tuned twice the base: whatever basis of (e1, e2) a decomposition returns, the answer is diag(6,6,2)."""
    base = diagonal(3, 3, 1)
    first, second = decompose(base), decompose(2 * base)
    turn = turned(angle)[:2, :2]
    other = type(second)(second.u.clone(), second.s, second.v.clone())
    other.u[:, :2], other.v[:, :2] = second.u[:, :2] @ turn, second.v[:, :2] @ turn
    assert close(restore("aligned", first, other, 2 * base, indices(3, 2, 0)), diagonal(6, 6, 2))
    if angle == 17.0:  # matching by index does depend on it: else this test could not fail
        assert not close(restore("direction", first, other, 2 * base, indices(3, 1, 0)), diagonal(6, 6, 2))


def test_a_matrix_that_is_not_square() -> None:
    base = torch.tensor([[2.0, 0], [0, 1], [0, 0]], dtype=torch.float64)
    tuned = torch.tensor([[0.0, 1], [2, 0], [0, 0]], dtype=torch.float64)
    expected = [[2.0, 1], [0, 0], [0, 0]]
    assert close(restored("direction", 1, 0, base, tuned), expected)
    assert close(restored("vector", 1, 0, base, tuned), expected)
    assert close(restored("values", 1, 0, base, tuned), tuned)


def test_full_vector_is_the_base_and_full_direction_is_not() -> None:
    assert left([float((restored("vector", 4, 0) - BASE).square().sum())], [1.0]) == pytest.approx(0, abs=1e-12)
    assert not close(restored("direction", 4, 0), BASE)


def test_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="mode=vectors is unknown; choose one of vector, direction, values, aligned"):
        restored("vectors", 1, 0)


# Controls


def test_the_straight_way_back() -> None:
    assert close(interpolate(BASE, TUNED, 0.25), 0.75 * TUNED + 0.25 * BASE)
    assert close(interpolate(BASE, TUNED, 1.0), BASE)


def test_drop_takes_away_the_top_of_the_change() -> None:
    parts = decompose(TUNED - BASE)
    assert close(drop(BASE, TUNED, 1), TUNED - parts.s[0] * torch.outer(parts.u[:, 0], parts.v[:, 0]))
    assert close(drop(BASE, TUNED, 4), BASE)
    assert torch.equal(drop(BASE, TUNED, 0), TUNED)


def test_random_indices_are_drawn_without_repetition() -> None:
    drawn = [random_indices(50, 10, torch.Generator().manual_seed(seed)).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(each)) == 10 and each == sorted(each) and set(each) <= set(range(50)) for each in drawn)
    assert drawn[0] != list(range(10))


# Indices


@pytest.mark.parametrize(
    ("share", "rank", "expected"),
    [(3, 10, 3), (30, 10, 10), (0, 10, 0), (0.0, 10, 0), (0.1, 30, 3), (0.1, 31, 4), (1.0, 7, 7), (1, 7, 1), (0.001, 7, 1)],
)
def test_shares_are_rounded_up_as_they_are_written(share: int | float, rank: int, expected: int) -> None:
    assert count(share, rank) == expected


def test_top_first_then_as_much_of_the_tail_as_is_left() -> None:
    assert indices(5, 1, 2).tolist() == [0, 3, 4]
    assert indices(5, 4, 3).tolist() == [0, 1, 2, 3, 4]
    assert indices(5, 0, 0.2).tolist() == [4]


@given(st.integers(1, 20), st.integers(0, 25), st.integers(0, 25))
def test_indices_are_distinct_and_ascending(rank: int, top: int, tail: int) -> None:
    found = indices(rank, top, tail).tolist()
    assert found == sorted(set(found)) and len(found) == min(rank, top + tail)


# What is arbitrary


def test_close_cuts_are_those_at_the_edges_of_the_indices() -> None:
    even, distinct = decompose(diagonal(3, 3, 2, 1)), decompose(diagonal(4, 3, 2, 1))
    assert [close_cuts(even, distinct, indices(4, top, 0), 1e-6) for top in range(5)] == [0, 1, 0, 0, 0]
    assert close_cuts(distinct, even, indices(4, 1, 0), 1e-6) == 1
    assert close_cuts(decompose(diagonal(3, 2, 1, 1)), distinct, indices(4, 1, 1), 1e-6) == 1


def test_gaps_are_relative_and_zero_between_zeros() -> None:
    assert torch.allclose(relative_gaps(torch.tensor([4.0, 3.0, 3.0, 0.0, 0.0])), torch.tensor([0.25, 0.0, 1.0, 0.0]))


def test_polar_is_the_nearest_rotation() -> None:
    turn = turned(40)
    assert torch.allclose(polar(turn @ diagonal(3, 2, 1, 0.5)), turn)


def test_left_is_over_all_matrices_and_may_exceed_one() -> None:
    assert left([9.0, 16.0], [1.0, 24.0]) == 1.0
    assert left([36.0], [9.0]) == 2.0
    assert left([0.0], [0.0]) is None


@pytest.mark.parametrize("mode", INDEX_MATCHED)
def test_equal_models_stay_as_they_are(mode: str) -> None:
    assert close(restored(mode, 2, 1, BASE, BASE), BASE)
