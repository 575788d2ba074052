"""Whole evaluations with a scripted engine: results, continuation after a kill, several models, sweeps; once with a real model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unify_posttrain.evaluation.conduct import JSON, MARKDOWN, build_requests, conduct
from unify_posttrain.evaluation.models import Model
from unify_posttrain.evaluation.settings import Evaluation
from unify_posttrain.rollout.seeds import rollout_seeds

from .conftest import ScriptedEngine, write_benchmark

pytestmark = [pytest.mark.usefixtures("plain_reward"), pytest.mark.slow]

Settings = Callable[..., Evaluation]
Scripted = Callable[..., ScriptedEngine]


def samples_file(evaluation: Evaluation, label: str = "tiny", benchmark: str = "sums") -> Path:
    return evaluation.output / "samples" / label / benchmark / "samples.jsonl"


def test_results_of_known_answers(settings: Settings, scripted: Scripted) -> None:
    """Truths are 3, 4 | 22222, 10, 10; row 0 is right in samples 0 and 1, row 3 in all; row 4 never answers."""
    answers = {0: ["3", "3", "4", "1"], 1: ["1", "3", "3", "3"], 2: ["1", "1", "1", "1"], 3: ["10"] * 4, 4: ["?"] * 4}
    engine = scripted(lambda request: answers[request.row][request.number])
    results = conduct(settings(), lambda *_: engine)
    easy, hard = results["models"][0]["sources"]
    assert (easy["source"], easy["problems"], easy["n"]) == ("easy", 2, 4)
    assert easy["accuracy"]["mean"] == 0.25  # (2/4 + 0)/2
    assert easy["pass_at"] == {"1": 0.25, "2": pytest.approx(5 / 12), "4": 0.5}  # 1 - C(2,2)/C(4,2) = 5/6, halved
    assert easy["majority"] == 0.5 and easy["no_answer"] == 0.0
    assert hard["accuracy"]["mean"] == pytest.approx(1 / 3) and hard["no_answer"] == pytest.approx(1 / 3)
    assert easy["truncated"] == hard["truncated"] == 0.25  # the engine cuts every fourth sample
    # tokens with the end: "10" and "?" 3 and 2, the rest 2; hard: 4 of 2, 4 of 3, 4 of 2
    assert hard["response_tokens"] == {"mean": pytest.approx(28 / 12), "median": 2.0, "longest": 3}
    assert results["models"][0]["mean"]["mean"] == pytest.approx((0.25 + 1 / 3) / 2)
    assert engine.closed


def test_requests_are_those_of_the_trainers_validation(settings: Settings) -> None:
    evaluation = settings("seed=5")
    prompts = {0: [9, 9], 2: [9], 7: [8, 9]}
    model = replace(evaluation.models[0], step=40)
    requests = build_requests(evaluation, model, evaluation.benchmarks[0], prompts)
    assert [request.order for request in requests] == sorted(request.order for request in requests)
    expected = rollout_seeds(5, 40, np.array([0, 0, 0, 0, 2, 2, 2, 2, 7, 7, 7, 7]), validate=True)
    found = {(request.row, request.number): request.seed for request in requests}
    assert [found[row, number] for row in (0, 2, 7) for number in range(4)] == expected.tolist()


@pytest.mark.parametrize("killed_after", [0, 1, 3, 6])
@pytest.mark.parametrize("torn", [0, 5])
def test_killed_and_continued_equals_uninterrupted(
    killed_after: int, torn: int, settings: Settings, scripted: Scripted, tmp_path: Path
) -> None:
    whole = settings(f"output={tmp_path / 'whole'}")
    conduct(whole, lambda *_: scripted())
    broken = settings(f"output={tmp_path / 'broken'}")
    with pytest.raises(KeyboardInterrupt):
        conduct(broken, lambda *_: scripted(chunks=killed_after))
    path = samples_file(broken)
    if torn and path.exists():
        path.write_bytes(path.read_bytes()[:-torn])  # as SIGKILL in the middle of a write leaves it
    there = path.read_bytes().count(b"\n") if path.exists() else 0
    assert there == max(0, 3 * killed_after - bool(torn))  # chunks of 3
    engine = scripted()
    conduct(broken, lambda *_: engine)
    assert len(engine.asked) == 20 - there  # five problems of four samples; nothing that is there is asked for again
    for name in (JSON, MARKDOWN):
        assert (broken.output / name).read_bytes() == (whole.output / name).read_bytes()
    finished = scripted()
    conduct(broken, lambda *_: finished)
    assert not finished.asked


def test_a_finished_evaluation_loads_no_model(settings: Settings, scripted: Scripted) -> None:
    evaluation = settings()
    first = conduct(evaluation, lambda *_: scripted())

    def start(*_: Any) -> ScriptedEngine:
        raise AssertionError("loaded")

    assert conduct(evaluation, start) == first


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ("n=2", r"sampling\.n=4, which is now 2"),
        ("temperature=0.5", r"sampling\.temperature=1\.0, which is now 0\.5"),
        ("seed=9", r"sampling\.seed=0, which is now 9"),
        ("max_response_length=10", r"sampling\.max_response_length=12, which is now 10"),
        ("correct_threshold=0.5", r"reward\.correct_threshold=1\.0, which is now 0\.5"),
        ("custom_chat_template='{{messages[0].content}}'", "prompts="),
    ],
)
def test_samples_of_other_settings_are_not_mixed(change: str, key: str, settings: Settings, scripted: Scripted) -> None:
    conduct(settings(), lambda *_: scripted())
    with pytest.raises(ValueError, match=f"{key}.*overwrite=true"):
        conduct(settings(change), lambda *_: scripted())
    engine = scripted()
    conduct(settings(change, "overwrite=true"), lambda *_: engine)
    assert engine.asked


def test_a_changed_benchmark_is_noticed(settings: Settings, scripted: Scripted, benchmark_file: Path) -> None:
    conduct(settings(), lambda *_: scripted())
    write_benchmark(benchmark_file, [("easy", "1+2=", "4")])
    with pytest.raises(ValueError, match="benchmark="):
        conduct(settings(), lambda *_: scripted())


def test_two_models_are_compared_on_their_problems(settings: Settings, scripted: Scripted, tiny_model: Path) -> None:
    truths = {0: "3", 1: "4", 2: "22222", 3: "10", 4: "10"}
    engines = iter([scripted(lambda request: "1"), scripted(lambda request: truths[request.row])])
    results = conduct(settings(f"model={{base: '{tiny_model}', tuned: '{tiny_model}'}}", "n=1"), lambda *_: next(engines))
    (comparison,) = results["comparisons"]
    assert (comparison["model"], comparison["baseline"]) == ("tuned", "base")
    assert comparison["mean"]["difference"]["mean"] == 1.0 and comparison["mean"]["problems"] == 5
    assert comparison["mean"]["p_value"] == pytest.approx(2 / 32)  # 5 problems, all better: 2 of 2^5 sign patterns
    assert [part["problems"] for part in comparison["sources"]] == [2, 3]


def test_checkpoints_give_a_curve(settings: Settings, scripted: Scripted, tiny_model: Path) -> None:
    evaluation = settings("n=1")
    models = tuple(Model(f"step_{step}", str(tiny_model), step) for step in (0, 10))
    results = conduct(replace(evaluation, models=models), lambda *_: scripted())
    assert [model["step"] for model in results["models"]] == [0, 10]
    assert (evaluation.output / "curve.png").stat().st_size > 1000 and not (evaluation.output / "accuracy.png").exists()
    seeds = [
        [json.loads(line)["seed"] for line in samples_file(evaluation, model.label).read_text().splitlines()] for model in models
    ]
    assert not set(seeds[0]) & set(seeds[1])  # a step draws from a stream of its own


def test_unusable_ground_truth_and_long_prompts_are_counted(settings: Settings, scripted: Scripted, benchmark_file: Path) -> None:
    write_benchmark(benchmark_file, [("a", "1+2=", "3"), ("a", "2+2=", "bad"), ("b", "11111+11111=", "2"), ("c", "1+1=", "bad")])
    results = conduct(settings("max_prompt_length=10"), lambda *_: scripted(lambda request: "3"))
    entries = {entry["source"]: entry for entry in results["models"][0]["sources"]}
    assert (entries["a"]["problems"], entries["a"]["excluded"], entries["a"]["accuracy"]["mean"]) == (1, 1, 1.0)
    assert entries["a"]["accuracy"]["low"] is None  # one problem has no interval
    assert (entries["c"]["problems"], entries["c"]["excluded"], entries["c"]["accuracy"]) == (0, 1, None)
    assert (entries["b"]["problems"], entries["b"]["dropped_prompts"], entries["b"]["accuracy"]) == (0, 1, None)


def test_published_numbers_stand_beside_benchmarks_of_their_name(
    settings: Settings, scripted: Scripted, benchmark_file: Path
) -> None:
    write_benchmark(benchmark_file, [("amc", "1+2=", "3"), ("amc", "2+2=", "4")])
    evaluation = settings("benchmarks=[amc]", f"define.benchmarks.amc.files=['{benchmark_file}']")
    results = conduct(evaluation, lambda *_: scripted())
    report = (evaluation.output / MARKDOWN).read_text()
    assert "*HPT, Qwen2.5-Math-7B (arXiv 2509.04419)* | 69.4 | average 52.7" in report
    assert (evaluation.output / "accuracy.png").stat().st_size > 1000
    assert not any(row["model"] == "HPT" for row in conduct(settings(), lambda *_: scripted())["published"])
    json.dumps(results, allow_nan=False)


def test_a_real_model_from_start_to_end(settings: Settings) -> None:
    """transformers on CPU: two evaluations in different chunks give the same samples."""
    results = conduct(settings("n=2", "chunk_size=100"))
    entries = results["models"][0]["sources"]
    assert [entry["problems"] for entry in entries] == [2, 3]
    assert all(1 <= entry["response_tokens"]["longest"] <= 12 for entry in entries)
    again = settings("n=2", "chunk_size=4", f"output={settings().output}-again")
    assert conduct(again)["models"] == results["models"]
