"""Placing of names and points; that figures are drawn is tested with whole studies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.measures.intervals import Interval
from unify_posttrain.study.grid import Grid
from unify_posttrain.study.plots import draw_task, spread
from unify_posttrain.study.summary import Row, TaskSummary


def test_spread_by_hand() -> None:
    assert spread([10.0, 50.0], gap=5, low=0, high=100) == [10, 50]
    # 49, 50, 51 want the same place: a group of height 10 about its mean 50.
    assert spread([49.0, 50.0, 51.0], gap=5, low=0, high=100) == [45, 50, 55]
    # The group of 0, 0 cannot go below 0; it reaches up to 5, so 6 has to move to 10 and all three share one group.
    assert spread([0.0, 0.0, 6.0], gap=5, low=0, high=100) == [0, 5, 10]
    assert spread([], gap=5, low=0, high=100) == []


@given(st.lists(st.floats(0, 100), max_size=20).map(sorted))
def test_spread_keeps_order_distance_and_limits(values: list[float]) -> None:
    moved = spread(values, gap=5, low=0, high=100)
    assert len(moved) == len(values)
    assert all(above - below >= 5 - 1e-9 for below, above in pairwise(moved))
    assert all(-1e-9 <= value <= 100 + 1e-9 for value in moved)


def row(name: str, mean: float | None, demonstrations: float | None, curves: dict[int, dict[int, float]]) -> Row:
    nothing = Interval(None, None, 0)
    after = {"hard": Interval(mean, None if mean is None else 0.1, 3), "easy": nothing, "ood": nothing}
    return Row(name, 0.1, tuple(curves), (), {"hard": 0.1}, after, nothing, demonstrations, None, None, None, None, curves)


def test_rows_without_data_are_left_out(grid: Callable[..., Grid], tmp_path: Path) -> None:
    task = TaskSummary("sums", [row("good", None, None, {}), row("nan", None, 3.0, {0: {}})], {}, {}, {}, {})
    assert draw_task(grid(), task, tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 6, 18])
def test_any_number_of_algorithms(grid: Callable[..., Grid], tmp_path: Path, count: int) -> None:
    curves = {seed: {0: 0.1, 5: 0.1 * seed + 0.2} for seed in range(3)}
    rows = [row(f"a{i}", i / 20, 0.0, curves) for i in range(count)]
    files = draw_task(grid(), TaskSummary("sums", rows, {}, {}, {}, {}), tmp_path)
    assert [file.name for file in files] == ["sums_accuracy.png", "sums_demonstrations.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
