"""Ground truths are judged where they can do no harm: data preparation drops those that no response can be graded against."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import pytest

from unify_posttrain.rewards import math
from unify_posttrain.rewards.pool import KillablePool, Outcome

LIMITS = {"workers": 1, "timeout_seconds": 20.0, "memory_mb": 1024}


@pytest.mark.parametrize(
    ("gold", "version", "verdict"), [("42", 6, True), ("", 6, False), ("", 3, False), (r"\frac{1}{2}", 4, True)]
)
def test_verdicts(gold: str, version: int, verdict: bool) -> None:
    assert math.gradable([gold], version, **LIMITS) == [verdict]


@pytest.mark.parametrize("gold", ["spin", "segfault"])
def test_what_takes_the_grader_down_cannot_be_graded(gold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "GRADE", "tests.rewards.mischief:act_on_gold")
    limits = {**LIMITS, "timeout_seconds": 1.0}
    assert math.gradable(["fine", gold, "fine"], 3, **limits) == [True, False, True]


SHORT = {"workers": 1, "timeout_seconds": 2.0, "memory_mb": 1024}
UNCOMPUTABLE = (r"10^{10^{10}}", r"\boxed{9^{9^{9^{9}}}}")
DEEP = ("{" * 100_000, "(" * 100_000 + "1" + ")" * 100_000, '["' * 100_000, r"\sqrt{" * 300 + "x" + "}" * 300)


class Counting:
    """Graders, and how often each kind of question was put to them."""

    def __init__(self, graders: KillablePool, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []

        def send(items: Sequence[dict]) -> list[Outcome]:
            self.asked += ["answer" if "text" in item else "gold" for item in items]
            return KillablePool.send(graders, items)

        monkeypatch.setattr(graders, "send", send)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    monkeypatch.setattr(math, "_verdicts", math._Verdicts())
    with math.pool(math.GRADE, **SHORT) as graders:
        return Counting(graders, monkeypatch)


@pytest.mark.parametrize("gold", UNCOMPUTABLE)
def test_what_cannot_be_computed_is_found_out_once(gold: str, counting: Counting) -> None:
    """By math-verify alone, which computes it."""
    scored = [math.compute_score("s", rf"\boxed{{{answer}}}", gold, version=4, **SHORT) for answer in ("x+1", "10^9", "2")]
    assert [(each["score"], each["gold_ok"], each["grader_fault"]) for each in scored] == [(0.0, 0.0, 0.0)] * 3
    assert counting.asked == ["gold"], "one question, no answer was graded"
    assert math.gradable([gold], 4, **SHORT) == [False], "so prepare drops it"


@pytest.mark.parametrize("gold", UNCOMPUTABLE)
@pytest.mark.parametrize("version", [2, 5, 6])
def test_the_typed_reader_computes_nothing_that_is_too_large(gold: str, version: int) -> None:
    results = math.compute_scores(
        [rf"\boxed{{{answer}}}" for answer in ("x+1", "10^9", gold)], [gold] * 3, version=version, **SHORT
    )
    assert [(each["score"], each["gold_ok"], each["grader_fault"]) for each in results] == [(0.0, 1.0, 0.0)] * 2 + [(1.0, 1.0, 0.0)]


def test_rollouts_of_a_group_that_are_graded_at_once_ask_once(counting: Counting) -> None:
    with ThreadPoolExecutor(8) as threads:
        scored = list(
            threads.map(
                lambda number: math.compute_score("s", rf"\boxed{{{number}}}", UNCOMPUTABLE[0], version=4, **SHORT), range(8)
            )
        )
    assert {each["gold_ok"] for each in scored} == {0.0} and counting.asked == ["gold"]


@pytest.mark.slow
@pytest.mark.parametrize("gold", DEEP, ids=["braces", "parentheses", "lists", "roots"])
@pytest.mark.parametrize("version", [4, 6])
def test_deep_nesting_is_one_row(gold: str, version: int, counting: Counting) -> None:
    """As the ground truth, and as the answer to another one: never an error of the run."""
    as_gold = math.compute_score("s", r"\boxed{2}", gold, version=version, **SHORT)
    as_answer = math.compute_score("s", rf"\boxed{{{gold}}}", "x^2+1", version=version, **SHORT)
    assert as_gold["score"] == as_answer["score"] == 0.0
    assert as_answer["gold_ok"] == 1.0, "an answer says nothing of the ground truth"


def test_the_answer_line_has_the_same_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "_verdicts", math._Verdicts())
    with math.pool(math.GRADE_DAPO, **SHORT) as made:
        graders = Counting(made, monkeypatch)
    scored = [math.compute_dapo_score("s", f"Answer: {answer}", "", **SHORT) for answer in ("x+1", "3")]
    assert {each["gold_ok"] for each in scored} == {0.0} and graders.asked == ["gold"]
    assert math.compute_dapo_score("s", "Answer: 34", "34", **SHORT)["score"] == 1.0


def test_ground_truths_of_a_batch_are_asked_side_by_side_and_once(counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    """One by one they kept all workers but one idle: twice as many were no faster."""
    maps: list[list[str]] = []
    send_all = KillablePool.map

    def map_items(self: KillablePool, items: Iterable[dict]) -> list[Outcome]:
        taken = list(items)
        maps.append(["answer" if "text" in item else item["gold"] for item in taken])
        return send_all(self, taken)

    monkeypatch.setattr(KillablePool, "map", map_items)
    golds = ["1", "2", "1", "", "2"]
    scored = math.compute_scores([r"\boxed{1}"] * 5, golds, version=6, **SHORT)
    assert [each["score"] for each in scored] == [1.0, 0.0, 1.0, 0.0, 0.0]
    assert [each["gold_ok"] for each in scored] == [1.0, 1.0, 1.0, 0.0, 1.0]
    assert maps == [["1", "2", ""], ["answer"] * 4]
    math.compute_scores([r"\boxed{1}"] * 2, ["2", "3"], version=6, **SHORT)
    assert maps[2:] == [["3"], ["answer"] * 2]


def test_whoever_waits_hears_that_graders_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one asks again: nothing is remembered of a ground truth that nobody could be asked about."""
    monkeypatch.setattr(math, "_verdicts", math._Verdicts())
    barrier = Barrier(4)

    class Broken:
        target = "broken"
        asked = 0

        def map(self, items: Iterable[dict]) -> list[Outcome]:
            assert list(items)
            Broken.asked += 1
            raise RuntimeError("did not start")

    def ask(number: int) -> str:
        barrier.wait()
        try:
            math._verdicts.usable(Broken(), ["1", str(number)], 6)  # type: ignore[arg-type]
        except RuntimeError as error:
            return str(error)
        return "nothing"

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(ask, range(4))) == ["did not start"] * 4
    before = Broken.asked
    with pytest.raises(RuntimeError):
        math._verdicts.usable(Broken(), ["1"], 6)  # type: ignore[arg-type]
    assert Broken.asked == before + 1


@pytest.mark.parametrize(
    ("given", "plain"),
    [("4", "4"), (4, 4), (0.5, 0.5), (np.int64(3), 3), (np.array(["a", "b"], dtype=object), ["a", "b"]), (["1", 2, None], ["1", 2]),
     (True, []), (float("nan"), []), (None, []), ({"a": 1}, []), (np.array([1, 2]), [1, 2])],
)  # fmt: skip
def test_what_of_a_ground_truth_reaches_the_graders(given: Any, plain: Any) -> None:
    assert math.plain_ground_truth(given) == plain
