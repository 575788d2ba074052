"""Verdicts: verl's loader finds the training's function, and every form of its result is understood."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.config import compose_config
from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.rewards import Judge, Verdict, check_reward, load_extractor, load_reward
from unify_posttrain.rewards.protection import Protection

PROTECTION = Protection.from_node(compose_config([]).reward.protection)


def problem(truth: Any = "3", **extra: Any) -> Problem:
    return Problem(0, "a", [{"role": "user", "content": "1+2="}], truth, extra)


def judge(result: Any, extractor: Any = lambda text: None, threshold: float = 1.0) -> Verdict:
    (verdict,) = Judge(lambda **_: result, lambda: extractor, threads=1, threshold=threshold).judge([problem()], ["so 3"])
    return verdict


@pytest.mark.parametrize(
    ("result", "threshold", "expected"),
    [
        (1.0, 1.0, Verdict(1.0, True, "", True)),
        (0.99, 1.0, Verdict(0.99, False, "", True)),
        (0.99, 0.5, Verdict(0.99, True, "", True)),
        ({"score": -1.0, "acc": 1.0}, 1.0, Verdict(-1.0, True, "", True)),  # acc decides, whatever the score
        ({"score": 2.0, "acc": False}, 1.0, Verdict(2.0, False, "", True)),
        ({"score": 1, "pred": "3"}, 1.0, Verdict(1.0, True, "3", True)),
        ({"score": 0, "pred": "", "gold_ok": 0}, 1.0, Verdict(0.0, False, "", False)),
        ({"score": 0, "acc": 0, "pred": None, "gold_ok": True}, 1.0, Verdict(0.0, False, "", True)),
    ],
)
def test_results(result: Any, threshold: float, expected: Verdict) -> None:
    assert judge(result, threshold=threshold) == expected


@pytest.mark.parametrize("result", [None, {"score": None}, float("nan"), {"score": float("inf"), "acc": 1.0}])
def test_a_response_without_a_score_is_left_out(result: Any) -> None:
    verdict = judge(result)
    assert (verdict.score, verdict.gold_ok) == (0.0, False)


@pytest.mark.parametrize("result", [{}, {"acc": 1.0}, "1.0", [1.0], {"score": "1"}])
def test_a_result_that_is_none_counts_as_wrong_until_there_are_too_many(result: Any) -> None:
    assert judge(result) == Verdict(0.0, False, "", True)
    strict = Judge(lambda **_: result, lambda: lambda text: None, 1, 1.0, PROTECTION)
    with pytest.raises(ValueError, match=r"1 of 1 calls failed \(1 error\).*it must return a number, or a mapping with `score`"):
        strict.judge([problem()], ["so 3"])


def test_answers_are_extracted_only_where_the_reward_gives_none() -> None:
    asked: list[str] = []

    def extractor(text: str) -> str:
        asked.append(text)
        return text[-1]

    assert judge(1.0, extractor).answer == "3"
    assert judge({"score": 1.0, "pred": "three"}, extractor).answer == "three"
    assert asked == ["so 3"]


def test_an_extractor_that_is_not_needed_is_not_loaded() -> None:
    def build() -> Any:
        raise AssertionError("loaded")

    assert Judge(lambda **_: {"score": 1, "pred": "x"}, build, 1, 1.0).judge([problem()], ["t"])[0].answer == "x"


def test_order_is_kept_and_calls_run_side_by_side() -> None:
    meeting = threading.Barrier(3, timeout=5)  # breaks unless three calls are under way at once

    def reward(solution_str: str, **_: Any) -> float:
        meeting.wait()
        time.sleep(0.01 * (3 - int(solution_str)))
        return float(solution_str)

    verdicts = Judge(reward, lambda: lambda text: text, threads=3, threshold=1.0).judge([problem()] * 3, ["0", "1", "2"])
    assert [verdict.score for verdict in verdicts] == [0.0, 1.0, 2.0]
    assert [verdict.answer for verdict in verdicts] == ["0", "1", "2"]


def test_the_call_is_that_of_verls_manager() -> None:
    seen: dict[str, Any] = {}

    def reward(**arguments: Any) -> float:
        seen.update(arguments)
        return 1.0

    Judge(reward, lambda: lambda text: None, 1, 1.0).judge([problem({"target": 3}, index=4)], ["x"])
    assert seen == {
        "data_source": "a",
        "solution_str": "x",
        "ground_truth": {"target": 3},
        "extra_info": {"index": 4, "num_turns": 2, "rollout_reward_scores": {}},
    }


def test_verls_loader_and_its_arguments(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def scored(data_source, solution_str, ground_truth, extra_info, bonus): return len(solution_str) + bonus\n")
    call = {"data_source": "", "solution_str": "ab", "ground_truth": "", "extra_info": {}}
    reward = load_reward({"path": str(own), "name": "scored", "reward_kwargs": {"bonus": 10}}, PROTECTION)
    assert reward([call])[0].score == 12
    reward.close()
    node = {"path": "pkg://unify_posttrain.tasks.arithmetic", "name": "compute_score", "reward_kwargs": None}
    (scored,) = load_reward(node, PROTECTION)([{**call, "solution_str": "answer 3", "ground_truth": "3"}])
    assert scored.fields["acc"] == 1.0
    assert load_extractor({"path": "pkg://unify_posttrain.tasks.answer", "name": "final_answer"})("answer 3") == "3"


def test_functions_that_cannot_be_used(tmp_path: Path) -> None:
    own = tmp_path / "slow.py"
    own.write_text("async def scored(**_): return 1.0\n")
    with pytest.raises(ValueError, match="is asynchronous"):
        load_reward({"path": str(own), "name": "scored"}, PROTECTION)
    with pytest.raises(ValueError, match=r"other of .*slow\.py cannot be loaded"):
        load_reward({"path": str(own), "name": "other"}, PROTECTION)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_reward({"path": str(tmp_path / "none.py"), "name": "f"}, PROTECTION)
    with pytest.raises(ValueError, match="path and name must be set"):
        load_reward({"path": None, "name": "compute_score"}, PROTECTION)
    with pytest.raises(ValueError, match="answer extractor f of pkg://nowhere cannot be loaded"):
        load_extractor({"path": "pkg://nowhere", "name": "f"})


def of_source(source: str) -> Problem:
    return Problem(0, source, [{"role": "user", "content": "1+2="}], "3", {})


@pytest.mark.parametrize("source", ["numina_olympiads", "codecontests", "hiyouga/geometry3k"])
def test_graders_that_evaluate_are_refused_here_too(source: str) -> None:
    dispatcher = {"path": "pkg://verl.utils.reward_score", "name": "default_compute_score"}
    with pytest.raises(ValueError, match=rf"data_source='{source}'.*set reward\.path=pkg://unify_posttrain"):
        check_reward(dispatcher, PROTECTION, [of_source("openai/gsm8k"), of_source(source)])
    module = "pkg://verl.utils.reward_score.prime_math"
    with pytest.raises(ValueError, match="evaluates model text"):
        check_reward({"path": module, "name": "compute_score"}, PROTECTION, [of_source("a")])


def test_a_function_is_tried_before_anything_is_generated(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text("def scored(data_source, **_): return 1.0 if data_source == 'a' else 'x'\n")
    node = {"path": str(own), "name": "scored"}
    check_reward(node, PROTECTION, [of_source("a")])
    with pytest.raises(ValueError, match=r"own\.py, tried on 3 rows of the data: 3 of 3 calls failed.*returned str"):
        check_reward(node, PROTECTION, [of_source(source) for source in "bcd"])


def test_what_a_function_does_costs_its_response(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(
        "import os\n"
        "def scored(solution_str, **_):\n"
        "    if solution_str == 'exit': os._exit(0)\n"
        "    return {'score': 1.0, 'parts': [1]} if solution_str == 'fine' else float('nan')\n"
    )
    reward = load_reward({"path": str(own), "name": "scored"}, PROTECTION)
    found = Judge(reward, lambda: lambda text: None, 1, 1.0, PROTECTION).judge([problem()] * 4, ["fine", "exit", "fine", "nan"])
    reward.close()
    assert [(each.correct, each.gold_ok) for each in found] == [(True, True), (False, True), (True, True), (False, False)]
