"""Row plans: how much padding, and which row goes where."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience import RowPlan, deal, plan_rows


@pytest.mark.parametrize(
    ("gated", "expected"),
    [  # N = 128, n = 8, dp = 8, S = 2: B' = 8*(128 - gated) + gated, padded to a multiple of 16
        (0, RowPlan(1024, 0, 128, 64)),
        (10, RowPlan(960, 6, 120, 60)),  # B' = 954
        (64, RowPlan(576, 0, 72, 36)),
        (128, RowPlan(128, 0, 16, 8)),
    ],
)
def test_specified_plans(gated: int, expected: RowPlan) -> None:
    assert plan_rows(8 * (128 - gated) + gated, ranks=8, mini_batches=2) == expected


def test_there_is_always_a_row_for_everyone() -> None:
    assert plan_rows(0, 4, 2) == RowPlan(8, 8, 2, 1)
    assert plan_rows(1, 1, 1) == RowPlan(1, 0, 1, 1)


@given(st.integers(0, 3000), st.integers(1, 16), st.integers(1, 8))
def test_padding_is_the_least_that_divides(routed: int, ranks: int, mini_batches: int) -> None:
    plan = plan_rows(routed, ranks, mini_batches)
    unit = ranks * mini_batches
    assert plan.rows == routed + plan.padding
    assert plan.rows % unit == 0
    assert plan.padding < unit or routed == 0
    assert plan.per_rank * ranks == plan.per_mini_batch * unit == plan.rows >= unit


@pytest.mark.parametrize(("ranks", "mini_batches"), [(0, 1), (1, 0), (-2, 1)])
def test_nonsense_is_refused(ranks: int, mini_batches: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        plan_rows(8, ranks, mini_batches)


# --- dealing ---------------------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int, int]:
    ranks, mini_batches = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rows = draw(st.integers(1, 6)) * ranks * mini_batches
    lengths = draw(st.lists(st.integers(1, 50), min_size=rows, max_size=rows))
    kinds = draw(st.lists(st.integers(0, 2), min_size=rows, max_size=rows))
    return np.array(lengths), np.array(kinds), ranks, mini_batches


@given(batches())
def test_every_row_is_dealt_once(batch: tuple) -> None:
    order = deal(*batch)
    assert sorted(order.tolist()) == list(range(len(batch[0])))


@given(batches())
def test_each_kind_is_spread_evenly(batch: tuple) -> None:
    """Every rank's mini-batch holds as many demonstrations (rollouts, padding rows) as any other, give or take one."""
    _, kinds, ranks, mini_batches = batch
    blocks = kinds[deal(*batch)].reshape(ranks * mini_batches, -1)
    for kind in range(3):
        held = (blocks == kind).sum(axis=1)
        assert held.max() - held.min() <= 1, f"kind {kind}: {held.tolist()} rows per block, kinds {kinds.tolist()}"


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.randoms(use_true_random=False))
def test_tokens_are_balanced(ranks: int, mini_batches: int, rounds: int, random: object) -> None:
    """Cards dealt in order of length: block sums differ by at most the longest row."""
    lengths = np.array([random.randint(1, 100) for _ in range(ranks * mini_batches * rounds)])
    order = deal(lengths, np.zeros(len(lengths), int), ranks, mini_batches)
    sums = lengths[order].reshape(ranks * mini_batches, -1).sum(axis=1)
    assert sums.max() - sums.min() <= lengths.max()


def test_dealing_is_deterministic_and_known() -> None:
    # 2 ranks x 1 mini-batch; sorted by length: rows 3 (9), 1 (7), 0 (5), 2 (1); dealt 3 | 1, then 0 | 2
    assert deal([5, 7, 1, 9], [0, 0, 0, 0], 2, 1).tolist() == [3, 0, 1, 2]
    # demonstrations after rollouts: 1 | 3 rollouts, then 0 | 2 demonstrations
    assert deal([5, 7, 1, 6], [1, 0, 1, 0], 2, 1).tolist() == [1, 0, 3, 2]


def test_equal_rows_keep_their_order() -> None:
    assert deal([3, 3, 3], [0, 0, 0], 1, 1).tolist() == [0, 1, 2]


def test_rows_that_cannot_be_dealt_are_refused() -> None:
    with pytest.raises(ValueError, match=r"5 rows.*2 ranks x 2"):
        deal([1] * 5, [0] * 5, 2, 2)
