"""exp_scripts/uft_reward.py: 0 without an answer, 0.1 for a wrong one, 1 for a right one."""

from __future__ import annotations

import json

import pytest

from exp_scripts.uft_reward import compute_score

TRUTH = {"target": 29, "numbers": [8, 3, 5]}  # 8 * 3 + 5


def score(response: str, truth: object = TRUTH) -> tuple[float, float]:
    found = compute_score("countdown", response, truth)
    return found["score"], found["acc"]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>8*3=24</think>\n<answer>8*3+5</answer>", (1, 1)),
        ("<answer> (5 + 8 * 3) </answer> <answer>5+(3*8)</answer>", (1, 1)),
        ("<answer>8*3+5</answer> no: <answer>8+3+5</answer>", (0.1, 0)),  # the last one counts
        ("<answer>8+3+5</answer>", (0.1, 0)),  # 16
        ("<answer>29</answer>", (0.1, 0)),  # other numbers
        ("<answer>8*3+5+0</answer>", (0.1, 0)),  # one too many
        ("<answer>8*3+5=29</answer>", (0.1, 0)),  # no formula
        ("<answer>__import__('os').getpid()</answer>", (0.1, 0)),
        ("<answer>8/(5-5)</answer>", (0.1, 0)),
        ("<answer>8*3+5</answer>\nThat is it.", (0, 0)),  # only the last line is read
        ("8*3+5", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_scores(response: str, expected: tuple[float, float]) -> None:
    assert score(response) == expected
    assert score(response, json.dumps(TRUTH)) == expected


def test_division_is_exact() -> None:
    """8 / (3 - 8/3) = 24, which floats miss."""
    assert score("<answer>8/(3-8/3)</answer>", {"target": 24, "numbers": [8, 3, 8, 3]}) == (1, 1)


@pytest.mark.parametrize("truth", ["42", "{}", None, {"target": "x", "numbers": [1]}, '{"target": 1}'])
def test_another_ground_truth_is_an_error_of_the_data(truth: object) -> None:
    with pytest.raises(ValueError, match=r"ground_truth of data_source='countdown'.*give a target and numbers"):
        score("<answer>1</answer>", truth)
