"""Aggregations: the golden numbers of the specification, weights, padding, emptiness, splitting."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.objective import MODES, Aggregation, Count

# Two demonstrations with NLL [.1, .2, .3, .4] and [1.0]: row sums 1.0 and 1.0, row means .25 and 1.0, 5 tokens, 2 rows.
LOSS = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 9.0, 9.0, 9.0]], dtype=torch.float64)
MEMBERS = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)
COUNT = Count(5.0, 2.0)

GOLDEN = {
    "token-mean": 0.4,  # 2.0/5
    "seq-mean-token-mean": 0.625,  # (.25 + 1.0)/2
    "seq-mean-token-sum": 1.0,  # (1.0 + 1.0)/2
    "seq-mean-token-sum-norm": 0.25,  # 2.0/(2 rows * L_max 4)
    "sum-norm": 0.5,  # 2.0/(L_max 4 * K 1)
}
WEIGHTED = {  # row weights 1/2 and 1: numerators .5 + 1.0 (or .125 + 1.0), the counts stay
    "token-mean": 0.3,  # 1.5/5
    "seq-mean-token-mean": 0.5625,  # 1.125/2
    "seq-mean-token-sum": 0.75,  # 1.5/2
    "seq-mean-token-sum-norm": 0.1875,  # 1.5/8
    "sum-norm": 0.375,  # 1.5/4
}


def test_every_mode_has_a_golden_number() -> None:
    assert set(GOLDEN) == set(WEIGHTED) == set(MODES)


@pytest.mark.parametrize("mode", MODES)
def test_golden(mode: str) -> None:
    assert Aggregation(mode, horizon=4)(LOSS, MEMBERS, None, COUNT).item() == pytest.approx(GOLDEN[mode], abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_row_weights_multiply_numerators_only(mode: str) -> None:
    value = Aggregation(mode, horizon=4)(LOSS, MEMBERS, torch.tensor([0.5, 1.0]), COUNT)
    assert value.item() == pytest.approx(WEIGHTED[mode], abs=1e-12)


def test_sum_norm_divides_by_its_constant_and_by_nothing_that_is_counted() -> None:
    # sum 2.0 / (L_max 4 * K 8)
    for count in (COUNT, Count(500.0, 100.0), Count(0.0, 0.0)):
        value = Aggregation("sum-norm", horizon=4, divisor=8)(LOSS, MEMBERS, None, count)
        assert value.item() == pytest.approx(0.0625, abs=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_padded_width_changes_nothing(mode: str) -> None:
    wide_loss, wide_members = torch.full((2, 9), 5.0, dtype=torch.float64), torch.zeros(2, 9, dtype=torch.bool)
    wide_loss[:, :4], wide_members[:, :4] = LOSS, MEMBERS
    assert Aggregation(mode, horizon=4)(wide_loss, wide_members, None, COUNT).item() == pytest.approx(GOLDEN[mode])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("count", [Count(0.0, 0.0), Count(torch.zeros(()), torch.zeros(()))], ids=["number", "tensor"])
def test_empty_set_is_zero_and_connected(mode: str, count: Count) -> None:
    loss = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    value = Aggregation(mode, horizon=3)(loss, torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2), count)
    value.backward()
    assert value.item() == 0.0
    assert torch.equal(loss.grad, torch.zeros_like(loss))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_outside_the_set_are_ignored(mode: str, bad: float) -> None:
    loss = torch.where(MEMBERS, LOSS, bad).requires_grad_()
    value = Aggregation(mode, horizon=4)(loss, MEMBERS, None, COUNT)
    value.backward()
    assert value.item() == pytest.approx(GOLDEN[mode])
    assert torch.equal(loss.grad != 0, MEMBERS)


@pytest.mark.parametrize("mode", MODES)
def test_counts_may_be_numbers_or_tensors_of_any_precision(mode: str) -> None:
    aggregate = Aggregation(mode, horizon=4)
    for dtype in (torch.float32, torch.float64, torch.int64):
        count = Count(torch.tensor(5, dtype=dtype), torch.tensor(2, dtype=dtype))
        assert aggregate(LOSS, MEMBERS, None, count).item() == pytest.approx(GOLDEN[mode], abs=1e-12)
    assert aggregate(LOSS, MEMBERS, None, Count(5, 2)).item() == pytest.approx(GOLDEN[mode], abs=1e-12)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 6),
    width=st.integers(1, 5),
    cut=st.integers(0, 6),
    mode=st.sampled_from(MODES),
)
def test_shares_of_any_split_add_up(seed: int, rows: int, width: int, cut: int, mode: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    loss = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    members = torch.rand(rows, width, generator=generator) < 0.6
    weight = torch.rand(rows, generator=generator, dtype=torch.float64)
    count = Count(members.sum().double(), members.any(dim=-1).sum().double())
    aggregate = Aggregation(mode, horizon=7, divisor=3)
    whole = aggregate(loss, members, weight, count)
    parts = sum(aggregate(loss[rows_], members[rows_], weight[rows_], count) for rows_ in (slice(cut), slice(cut, None)))
    assert parts.item() == pytest.approx(whole.item(), abs=1e-12)


def test_unknown_mode_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"fusion\.agg.*'mean'.*seq-mean-token-sum-norm"):
        Aggregation("mean")


@pytest.mark.parametrize("mode", ["seq-mean-token-sum-norm", "sum-norm"])
@pytest.mark.parametrize("horizon", [None, 0, -4])
def test_norm_modes_need_a_horizon(mode: str, horizon: int | None) -> None:
    with pytest.raises(ValueError, match=r"data\.max_response_length"):
        Aggregation(mode, horizon=horizon)


@pytest.mark.parametrize("divisor", [0, -1.0, float("nan")])
def test_divisor_must_be_positive(divisor: float) -> None:
    with pytest.raises(ValueError, match=r"fusion\.sum_norm_divisor"):
        Aggregation("sum-norm", horizon=4, divisor=divisor)
