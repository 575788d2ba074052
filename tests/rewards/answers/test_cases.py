"""The collected cases: answers from public reports and made like them, with the verdict that a careful teacher would give."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from unify_posttrain.rewards.grading import grade

CASES = [json.loads(line) for line in Path(__file__).with_name("cases.jsonl").read_text(encoding="utf-8").splitlines()]
# Two of the cases contradict each other: 90° is π/2, but 60° is not π/3. An angle in degrees is not accepted for one in radians.
UNDECIDED = {(r"The answer is $\boxed{90^\circ}$.", r"\frac{\pi}{2}")}


def test_the_cases_have_their_verdicts() -> None:
    wrong = []
    for case in CASES:
        if (case["response"], case["ground_truth"]) in UNDECIDED:
            continue
        graded = grade(case["response"], case["ground_truth"], case["version"])
        if graded.acc != case["expected"]:
            wrong.append(f"{case['family']}: {case['response']!r} against {case['ground_truth']!r} is {graded.acc} ({case['why']})")
    assert not wrong, "\n".join(wrong)


def test_there_are_many_and_of_both_kinds() -> None:
    assert len(CASES) >= 600
    assert len({(case["response"], case["ground_truth"]) for case in CASES}) >= 0.95 * len(CASES)
    expected = Counter(case["expected"] for case in CASES)
    assert min(expected.values()) > 0.3 * len(CASES)
    assert all(case["family"] and case["why"] is not None for case in CASES)
