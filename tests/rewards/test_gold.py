"""Ground truths are judged where they can do no harm: data preparation drops those that no response can be graded against."""

from __future__ import annotations

import pytest

from unify_posttrain.rewards import math

LIMITS = {"workers": 1, "timeout_seconds": 20.0, "memory_mb": 1024}


@pytest.mark.parametrize(
    ("gold", "version", "verdict"), [("42", 6, True), ("", 6, False), ("", 3, False), (r"\frac{1}{2}", 4, True)]
)
def test_verdicts(gold: str, version: int, verdict: bool) -> None:
    assert math.gradable(gold, version, **LIMITS) is verdict


@pytest.mark.parametrize("gold", ["spin", "segfault"])
def test_what_takes_the_grader_down_cannot_be_graded(gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "GRADE", "tests.rewards.mischief:act_on_gold")
    limits = {**LIMITS, "timeout_seconds": 1.0}
    assert math.gradable(gold, 3, **limits) is False
    assert math.gradable("fine", 3, **limits) is True
