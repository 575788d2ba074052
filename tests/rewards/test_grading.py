"""Reward versions 0 to 7, the DAPO verdict, and the reward function as verl calls it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from unify_posttrain.rewards.dapo import grade_answer_line
from unify_posttrain.rewards.formats import compute_score as compute_format_score
from unify_posttrain.rewards.formats import tag_format, think_format
from unify_posttrain.rewards.grading import VERSIONS, gradable, grade
from unify_posttrain.rewards.math import VERSIONS as NAMED
from unify_posttrain.rewards.math import compute_dapo_score, compute_score, compute_scores

POOL = {"workers": 2, "timeout_seconds": 20.0, "memory_mb": 2048}
THOUGHT = r"I see. \boxed{1} </think> So \boxed{5}."


@pytest.mark.parametrize(
    ("version", "text", "gold", "score"),
    [
        (0, THOUGHT, "5", 1.0),
        (0, THOUGHT, "1", 0.0),  # the box inside of the thoughts is none
        (0, r"\boxed{5}", "5", 0.0),
        (0, r"</think> \boxed{\frac{4}{8}}", "0.5", 1.0),
        (1, THOUGHT, "5", 1.0),
        (1, THOUGHT, "6", -0.5),
        (1, r"\boxed{5}", "5", -1.0),
        (1, "</think> 5", "5", -1.0),  # no box
        (2, r"\boxed{5}", "5", 1.0),
        (2, r"\boxed{x+1}", "1+x", 1.0),
        (2, "5", "5", 0.0),
        (3, "</think>The answer is $5$.", "5", 1.0),
        (3, "The answer is $5$.", "5", 0.0),
        (3, "</think>The final answer is 7.", "7", 1.0),  # plain text, as published
        (4, "So we get 2/4", "1/2", 1.0),
        (4, "I count 1,234 of them", "1234", 1.0),
        (4, "It is x plus one", "x+1", 0.0),
        (3, r"$5$</think>$6$</think>$7$", "6", 1.0),
        (3, r"$5$</think>$6$</think>$7$", "7", 0.0),
        (3, r"</think>\boxed{\frac{2}{4}}", r"\frac{1}{2}", 1.0),
        (4, "The answer is $5$.", "5", 1.0),
        (4, r"\boxed{6}", "5", 0.0),
        (5, "The answer is 3.14", r"\pi", 1.0),
        (5, "The answer is 0.33333", r"\frac{1}{3}", 1.0),
        (5, "so x = 7.", "7", 1.0),
        (5, r"The answer is 8, no: \boxed{9}", "9", 1.0),
        (5, "The answer is 3.2", r"\pi", 0.0),
        (5, r"\boxed{x=2, y=1}", "x=1, y=2", 0.0),
        (5, r"\boxed{x=3.14159, y=1}", r"x=\pi, y=1", 1.0),
        (5, r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}", 0.0),
        (6, r"\boxed{2/3}", r"\frac{2}{3}", 1.0),
        (6, r"\boxed{1} \boxed{2}", "2", 1.0),
        (6, r"\boxed{1} \boxed{2}", "1", 0.0),
        (6, r"\fbox{5}", "5", 0.0),
        (6, r"\boxed{5}", r"\boxed{5}", 1.0),
        (6, r"\boxed{3.14}", r"\pi", 0.0),
        (7, THOUGHT, "5", 1.0),
        (7, r"</think>\boxed{1}</think>\boxed{2}", "2", 1.0),
        (7, r"</think>\boxed{1}</think>2", "1", 0.0),
        (7, r"\boxed{5}", "5", 0.0),
    ],
)
def test_versions(version: int, text: str, gold: str, score: float) -> None:
    graded = grade(text, gold, version)
    assert (graded.score, graded.acc, graded.gold_ok) == (score, float(score == 1.0), 1.0)


def test_the_two_lists_of_versions_agree() -> None:
    assert list(VERSIONS) == list(NAMED)


@pytest.mark.parametrize("version", [-1, 8, True, "6", None, 6.5])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(ValueError, match="choose one of 0, 1, 2, 3, 4, 5, 6, 7"):
        grade("x", "1", version)
    with pytest.raises(ValueError, match="choose one of 0, 1, 2, 3, 4, 5, 6, 7"):
        compute_score("math", "x", "1", version=version, **POOL)


@pytest.mark.parametrize("gold", [["4", "5"], ("5",), '["4", "5"]', r"\boxed{5}", " 5 "])
def test_any_of_several_golds_will_do(gold: Any) -> None:
    assert grade(r"\boxed{5}", gold, 6).score == 1.0
    assert grade(r"\boxed{6}", gold, 6).score == 0.0


@pytest.mark.parametrize(
    ("gold", "version", "usable"),
    [
        ("5", 6, True),
        ("Monday", 6, True),
        ("", 6, False),
        ("  ", 6, False),
        (r"\boxed{}", 6, False),
        ([], 6, False),
        (None, 6, False),
        ({"a": 1}, 6, False),
        (["", "5"], 6, True),
        (r"\frac{1}{2}", 3, True),
        ("", 3, False),
        ("$$", 2, False),
        (42, 6, True),
        (0.5, 6, True),
        ([1, 2.5], 6, True),
        (True, 6, False),
        (float("nan"), 6, False),
        ([[1, 2]], 6, False),
    ],
)
def test_which_golds_can_be_graded_against(gold: Any, version: int, usable: bool) -> None:
    assert gradable(gold, version) is usable
    assert grade(r"\boxed{5}", gold, version).gold_ok == float(usable)


@pytest.mark.parametrize(
    ("text", "gold", "acc"),
    [
        (r"\boxed{42}", 42, 1.0),
        (r"\boxed{\frac12}", 0.5, 1.0),
        (r"\boxed{2}", [1, 2], 1.0),
        (r"\boxed{-2}", r"\(\boxed{1}\) and \(\boxed{-2}\)", 0.0),
        (r"\boxed{-2, 1}", r"\(\boxed{1}\) and \(\boxed{-2}\)", 1.0),
        (r"\boxed{5}", r"\boxed{5}, that is, \boxed{5}", 1.0),
    ],
)
def test_ground_truths_of_all_kinds(text: str, gold: Any, acc: float) -> None:
    assert grade(text, gold, 6).acc == acc


def test_a_verdict_says_what_it_found() -> None:
    assert grade(r"\boxed{0.50}", "1/2", 6).pred == grade(r"\boxed{\frac12}", "1/2", 6).pred == "1/2"
    nothing = grade("no box", "1/2", 6)
    assert (nothing.pred, nothing.formatted) == ("", 0.0)


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("Answer: 34", "34", 1.0),
        (r"Answer: $\boxed{34}$", "34", 1.0),
        ("Answer: 34.0", "34", 1.0),
        ("Answer: 3\nAnswer: 34", "34", 1.0),
        ("Answer: 34\nAnswer: 3", "34", 0.0),
        ("34", "34", 0.0),
        (r"\boxed{34}", "34", 0.0),
    ],
)
def test_dapo(text: str, gold: str, score: float) -> None:
    assert grade_answer_line(text, gold).score == score
    assert compute_dapo_score("math_dapo", text, gold, {}, **POOL)["score"] == score


def test_the_reward_function_of_verl() -> None:
    result = compute_score("openr1", THOUGHT, np.array(["5", "6"], dtype=object), {"index": 1}, version=6, **POOL)
    assert result == {"score": 1.0, "acc": 1.0, "pred": "5", "formatted": 1.0, "gold_ok": 1.0, "grader_fault": 0.0}
    masked = compute_score("openr1", THOUGHT, {"not": "text"}, {}, version=6, **POOL)  # type: ignore[arg-type]
    assert (masked["score"], masked["gold_ok"]) == (0.0, 0.0)


def test_a_fault_scores_zero_and_is_counted() -> None:
    hang = {"workers": 1, "timeout_seconds": 1.0, "memory_mb": 1024}
    bomb = r"$9^{9^{9^{9^{9}}}}$"  # for math-verify alone, which computes it
    results = compute_scores(["$1$", bomb, "$1$"], ["1", "2", "1"], version=4, **hang)
    assert [(result["score"], result["grader_fault"]) for result in results] == [(1.0, 0.0), (0.0, 1.0), (1.0, 0.0)]


def test_math_verify_works_in_threads() -> None:
    """In a thread of its own process it scores 0 silently, for its timeouts are signals; the reward loop of verl has threads."""
    with ThreadPoolExecutor(4) as threads:
        scores = list(
            threads.map(lambda n: compute_score("m", f"</think>${n}x+1$", f"1+{n}x", version=3, **POOL)["score"], range(2, 10))
        )
    assert scores == [1.0] * 8


@pytest.mark.parametrize(
    ("text", "think", "tags"),
    [
        (r"<think>a</think> \boxed{5}", True, False),
        (r"a</think> \boxed{5}", True, False),
        (r"a</think> b</think> \boxed{5}", False, False),
        (r"\boxed{5}", False, False),
        (r"b <think>a</think> \boxed{5}", False, False),
        ("<think>a</think><answer>5</answer>", False, True),
        ("a</think>\n<answer>5</answer>\n", False, True),
        ("a</think> <answer>5</answer> and more", False, False),
        ("a</think> <answer>5</answer><answer>6</answer>", False, False),
        ("<answer>5</answer>", False, False),
    ],
)
def test_formats(text: str, think: bool, tags: bool) -> None:
    assert (think_format(text), tag_format(text)) == (think, tags)
    scores = [compute_format_score("any", text, None, {}, form=form)["score"] for form in ("think", "tags")]
    assert scores == [float(think), float(tags)]
    with pytest.raises(ValueError, match="form='box' is unknown; choose one of think, tags"):
        compute_format_score("any", text, None, {}, form="box")
