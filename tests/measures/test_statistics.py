"""avg@k, pass@k, maj@k, bootstrap intervals and paired tests: golden numbers and properties."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.measures.statistics import (
    Bootstrap,
    avg_at_k,
    compare,
    estimate,
    maj_at_k,
    majority,
    pass_at_k,
    powers_of_two,
    sign_flip_p_value,
)

HOW = Bootstrap(confidence=0.95, resamples=2000, seed=0)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [
        (8, 2, 1, 0.25),
        (8, 0, 8, 0.0),
        (8, 1, 8, 1.0),
        (4, 2, 2, 5 / 6),  # 1 - C(2,2)/C(4,2) = 1 - 1/6
        (5, 3, 3, 1.0),  # two wrong ones cannot fill three tries
        (5, 1, 2, 0.4),  # 1 - C(4,2)/C(5,2) = 1 - 6/10
    ],
)
def test_pass_at_k(n: int, c: int, k: int, expected: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-15)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_counts_the_subsets_with_a_correct_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(combinations(range(n), k))  # samples 0..c-1 are the correct ones
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(subset) < c for subset in subsets) / len(subsets), abs=1e-12)


@given(st.integers(2, 3000), st.data())
def test_pass_at_k_is_a_growing_chance(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n - 1))
    assert 0.0 <= pass_at_k(n, c, k) <= pass_at_k(n, c, k + 1) <= 1.0
    assert pass_at_k(n, c, 1) == c / n


def test_small_chances_keep_their_digits() -> None:
    # 1 - (1 - 1e-6) in floating point would keep ten digits of 1e-6
    assert pass_at_k(10**6, 1, 1) == 1e-6
    assert pass_at_k(4096, 1, 3) == 3 / 4096


@pytest.mark.parametrize(
    ("n", "c", "k", "message"),
    [
        (8, 2, 9, r"k=9 must lie in 1\.\.n=8"),
        (8, 2, 0, "k=0"),
        (8, 9, 1, r"c=9 correct samples must lie in 0\.\.n=8"),
        (8, -1, 1, "c=-1"),
        (0, 0, 1, r"1\.\.n=0"),
        (8, 1.5, 1, r"c=1\.5 must be a whole number"),
        (8, True, 1, "c=True"),
    ],
)
def test_pass_at_k_refuses(n: int, c: int, k: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pass_at_k(n, c, k)


def test_avg_at_k() -> None:
    assert avg_at_k([1, 0, 0, 1]) == 0.5
    assert avg_at_k([True]) == 1.0
    with pytest.raises(ValueError, match="without samples"):
        avg_at_k([])


@pytest.mark.parametrize(
    ("answers", "winner"),
    [
        (["7", "3", "3"], "3"),
        (["7", "3", "3", "7"], "7"),  # a tie: the first to occur
        (["", None, "", "5"], "5"),  # no answer, no vote
        (["", None], None),
        ([], None),
    ],
)
def test_majority(answers: list[str | None], winner: str | None) -> None:
    assert majority(answers) == winner


def test_maj_at_k() -> None:
    assert maj_at_k(["7", "3", "3"], [1, 0, 0]) == 0.0
    assert maj_at_k(["7", "3", "3"], [0, 1, 1]) == 1.0
    assert maj_at_k(["3", "3", "7"], [0, 1, 0]) == 0.0  # the first sample with the majority's answer decides
    assert maj_at_k(["", None], [0, 0]) == 0.0
    with pytest.raises(ValueError, match="2 answers and 1 verdicts"):
        maj_at_k(["1", "2"], [1])


@pytest.mark.parametrize(
    ("n", "expected"), [(1, [1]), (2, [1, 2]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8]), (32, [1, 2, 4, 8, 16, 32])]
)
def test_powers_of_two(n: int, expected: list[int]) -> None:
    assert powers_of_two(n) == expected


def test_interval_is_over_problems() -> None:
    # Resampling 4 of the values 0, 0, 1, 1 gives a Binomial(4, 1/2)/4: 0 and 1 have a chance of 1/16 each, more than 2.5 %.
    found = estimate([[0, 0, 1, 1]], HOW)
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)
    # Many equal problems: no spread, whatever the number of samples behind each value.
    assert estimate([[0.25] * 50], HOW) == estimate([[0.25] * 50], Bootstrap(0.95, 2000, 7))


def test_interval_of_a_large_source_is_the_normal_one() -> None:
    # 400 values, half of them 1: standard error sqrt(.25/400) = .025, so .5 -/+ 1.96 * .025 = [.451, .549]
    found = estimate([[0, 1] * 200], HOW)
    assert found.low == pytest.approx(0.451, abs=0.006) and found.high == pytest.approx(0.549, abs=0.006)


def test_draws_repeat_with_the_seed() -> None:
    values = [[0.1 * i for i in range(10)]]
    assert estimate(values, HOW) == estimate(values, HOW)
    assert estimate(values, HOW) != estimate(values, Bootstrap(0.95, 2000, 1))


def test_mean_over_sources_is_unweighted() -> None:
    found = estimate([[1.0] * 100, [0.0, 0.0]], HOW)
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)


def test_one_problem_has_no_interval_and_none_no_mean() -> None:
    assert estimate([[1.0]], HOW).low is None
    with pytest.raises(ValueError, match="without problems"):
        estimate([[]], HOW)
    with pytest.raises(ValueError, match="without problems"):
        estimate([], HOW)


def test_sign_flips_are_counted_exactly() -> None:
    # 5 differences of the same sign: 2 of the 2^5 = 32 sign patterns are as extreme
    assert sign_flip_p_value([1, 1, 1, 1, 1], HOW) == pytest.approx(2 / 32)
    # |sum| of 2, 1 flipped: 3, 1, -1, -3; observed 2 - 1 = 1: all four are at least as extreme
    assert sign_flip_p_value([2, -1], HOW) == pytest.approx(1.0)
    assert sign_flip_p_value([0, 0, 1, 1, 1, 1, 1], HOW) == pytest.approx(2 / 32)  # ties say nothing
    assert sign_flip_p_value([0, 0], HOW) == 1.0
    assert sign_flip_p_value([0.5], HOW) == 1.0


def test_paired_comparison() -> None:
    ours, theirs = [[1.0] * 10], [[0.0] * 5 + [1.0] * 5]
    found = compare(ours, theirs, HOW)
    assert found.difference.mean == 0.5 and found.problems == 10
    assert found.difference.low > 0 and found.p_value == pytest.approx(2 / 32)
    swapped = compare(theirs, ours, HOW)
    assert swapped.difference.mean == -0.5 and swapped.p_value == found.p_value


def test_pairing_removes_what_problems_do_to_both() -> None:
    """Problems differ widely, the models by a constant: the paired interval is a point."""
    values = [i / 20 for i in range(20)]
    found = compare([[value + 0.01 for value in values]], [values], HOW)
    assert found.difference.low == pytest.approx(0.01) and found.difference.high == pytest.approx(0.01)


def test_models_on_different_problems_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="same problems"):
        compare([[1, 0]], [[1, 0, 1]], HOW)


@pytest.mark.parametrize(
    ("confidence", "resamples", "key"), [(1.0, 10, "confidence"), (0.0, 10, "confidence"), (0.9, 0, "resamples")]
)
def test_bad_settings(confidence: float, resamples: int, key: str) -> None:
    with pytest.raises(ValueError, match=f"statistics.{key}"):
        Bootstrap(confidence, resamples, 0)
