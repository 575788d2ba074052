"""Metrics of sources, as the trainer's validation calls them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.evaluation import validation_metrics
from unify_posttrain.measures.metrics import by_source

SOURCES = ["a"] * 4 + ["b"] * 4
PROBLEMS = [0, 0, 1, 1, 0, 0, 1, 1]
SCORES = [1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.5, 1.0]


def test_golden() -> None:
    found = validation_metrics(SOURCES, PROBLEMS, SCORES, answers=["3", "4", "", "4", "1", "1", "2", "1"])
    assert found == {
        "val-eval/a/problems": 2.0,
        "val-eval/a/excluded": 0.0,
        "val-eval/a/avg@2": 0.25,  # (1/2 + 0)/2
        "val-eval/a/pass@1": 0.25,
        "val-eval/a/pass@2": 0.5,
        "val-eval/a/maj@2": 0.5,  # problem 0: 3 before 4, correct; problem 1: 4, wrong
        "val-eval/a/no_answer": 0.25,
        "val-eval/b/problems": 2.0,
        "val-eval/b/excluded": 0.0,
        "val-eval/b/avg@2": 0.75,  # a score of .5 is not solved: (1 + 1/2)/2
        "val-eval/b/pass@1": 0.75,
        "val-eval/b/pass@2": 1.0,
        "val-eval/b/maj@2": 0.5,  # problem 1: 2 before 1, and 2 is wrong
        "val-eval/b/no_answer": 0.0,
    }


def test_threshold_and_no_answers() -> None:
    found = validation_metrics(SOURCES, PROBLEMS, SCORES, threshold=0.5)
    assert found["val-eval/b/avg@2"] == 1.0
    assert not [key for key in found if "maj@" in key or "no_answer" in key]


def test_unusable_ground_truth_is_left_out_and_counted() -> None:
    usable = [1, 1, 0, 1, 0, 0, 0, 0]  # one verdict of a problem is enough
    found = validation_metrics(SOURCES, PROBLEMS, SCORES, usable=usable)
    assert found["val-eval/a/avg@2"] == 0.5 and found["val-eval/a/excluded"] == 1.0 and found["val-eval/a/problems"] == 1.0
    assert {key: value for key, value in found.items() if "/b/" in key} == {"val-eval/b/problems": 0.0, "val-eval/b/excluded": 2.0}


def test_uneven_numbers_of_samples_use_the_fewest() -> None:
    found = validation_metrics(["a"] * 5, ["x", "x", "x", "y", "y"], [1, 0, 0, 1, 1])
    assert found["val-eval/a/avg@2"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["val-eval/a/pass@2"] == pytest.approx((2 / 3 + 1) / 2)  # 1 - C(2,2)/C(3,2) = 2/3
    assert "val-eval/a/pass@3" not in found


@given(st.permutations(range(8)))
def test_order_of_samples_of_different_problems_does_not_matter(order: list[int]) -> None:
    shuffled = validation_metrics([SOURCES[i] for i in order], [PROBLEMS[i] for i in order], [SCORES[i] for i in order])
    assert shuffled == validation_metrics(SOURCES, PROBLEMS, SCORES)


def test_nothing_in_nothing_out() -> None:
    assert validation_metrics([], [], []) == {}


def test_columns_of_different_lengths() -> None:
    with pytest.raises(ValueError, match="lengths"):
        by_source(["a"], [0, 1], [True], [None], [True])
