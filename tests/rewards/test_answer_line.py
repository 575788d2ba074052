"""DAPO's last line in bold: no answer to verl's reward, nor to ours unless it is told that it is one."""

from __future__ import annotations

import pytest
from verl.utils.reward_score import math_dapo

from unify_posttrain.rewards.dapo import grade_answer_line, grade_item
from unify_posttrain.rewards.extraction import answer_line
from unify_posttrain.rewards.math import compute_dapo_score

POOL = {"workers": 1, "timeout_seconds": 5.0, "memory_mb": 1024}
BOLD = [
    "**Answer:** 13", "**Answer: 13**", "**Answer**: 13", "__Answer:__ 13", "*Answer:* 13", "***Answer:*** 13", "**ANSWER:** 13",
    "**Final Answer:** 13", "**Final Answer: 13**", "Answer: **13**", "**Answer:** **13**", "- **Answer:** 13", "**Answer:** $13$",
    r"**Answer:** \boxed{13}",
]  # fmt: skip


@pytest.mark.parametrize("line", BOLD)
def test_a_bold_line_counts_if_it_is_said(line: str) -> None:
    text = f"So it is 13.\n{line}"
    assert grade_answer_line(text, "13", bold=True).score == 1.0 and grade_answer_line(text, "14", bold=True).score == 0.0
    assert grade_item({"text": text, "gold": "13", "bold": True})["score"] == 1.0


@pytest.mark.parametrize("line", ["**Answer:** 13", "**Answer: 13**", "**Answer**: 13", "***Answer:*** 13"])
def test_by_default_it_is_what_verls_reward_says(line: str) -> None:
    assert math_dapo.compute_score(line, "13")["acc"] is False
    assert grade_answer_line(line, "13").score == 0.0
    assert compute_dapo_score("math_dapo", line, "13", {}, **POOL)["score"] == 0.0
    assert compute_dapo_score("math_dapo", line, "13", {}, bold_answer_line=True, **POOL)["score"] == 1.0


@pytest.mark.parametrize(
    "text", ["Answer: 13", "Answer: x^*", r"Answer: \boxed{2_3}", "myanswer: 3", "Answer:", "answer : 3", "Answer: 2*3"]
)
def test_a_plain_line_is_the_same_with_it(text: str) -> None:
    assert answer_line(text, bold=True) == answer_line(text)


def test_the_last_line_counts_and_a_bold_nothing_is_none() -> None:
    assert answer_line("Answer: 1\n**Answer:** 2", bold=True) == "2"
    assert answer_line("**Answer:** 1\nAnswer: 2", bold=True) == "2"
    assert answer_line("**Answer:**", bold=True) is None
