"""Episodes on the page: their turns in dumps and evaluations, and what is shown of rows that make no sense."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.reporting import build_report
from unify_posttrain.reporting.evaluations import browser, curves, read_evaluations, read_verdicts
from unify_posttrain.reporting.run import read_run
from unify_posttrain.reporting.samples import rollout_steps
from unify_posttrain.reporting.settings import load_settings
from unify_posttrain.reporting.turns import turns_of

from .conftest import EVIL, write_lines
from .test_page import Reader

LIMITS = load_settings().limits
WRONG = {"text": "1+1", "feedback": "no", "reward": -1.0, "solved": False}
RIGHT = {"text": "4*6", "feedback": "", "reward": 5, "solved": True}


def test_segments_fall_into_the_turns() -> None:
    """Feedback is untrained and belongs to the turn before it; a hint and an advantage of its own do not begin a turn."""
    segments = [["hint", "1"], ["on", "+1<end>"], ["untrained", "<user>no<assistant>"], ["on", "4*"], ["on", "6<end>"]]
    row = {"segments": segments, "advantage": [0.0, -1.0, 0.0, 2.0, 3.0], "turns": [WRONG, RIGHT], "row_kind": "rollout"}
    assert turns_of(row, 999) == [
        {"reward": -1.0, "solved": False, "segments": [
            ["hint", "1", 0, None], ["on", "+1<end>", 0, -1.0], ["untrained", "<user>no<assistant>", 0, None]]},
        {"reward": 5.0, "solved": True, "segments": [["on", "4*", 0, 2.0], ["on", "6<end>", 0, 3.0]]},
    ]  # fmt: skip


def test_texts_of_turns_stand_in_where_segments_do_not_fit() -> None:
    dropped = {"segments": [["untrained", "1+1no4*6"]], "advantage": None, "turns": [WRONG, RIGHT], "row_kind": "dropped"}
    assert [turn["segments"] for turn in turns_of(dropped, 999) or []] == [
        [["untrained", "1+1", 0, None], ["untrained", "no", 0, None]], [["untrained", "4*6", 0, None]],
    ]  # fmt: skip
    assert (turns_of({"turns": [WRONG], "advantage": 0.5}, 4) or [])[0]["segments"] == [
        ["on", "1+1", 0, 0.5],
        ["untrained", "n", 1, None],
    ]


@pytest.mark.parametrize("turns", [None, [], "x", [3], [{"text": None}], {"text": "x"}])
def test_rows_without_turns_are_no_episodes(turns: Any) -> None:
    assert turns_of({"turns": turns, "output": "x"}, 9) is None


def test_turns_that_lack_something_are_shown(tmp_path: Path) -> None:
    rows = [{"input": "q", "output": "a", "turns": [{"text": "a", "reward": "high", "solved": 1}]}, {"input": "q", "turns": [None]}]
    write_lines(tmp_path / "rollouts" / "1.jsonl", rows)
    (tmp_path / "config.yaml").write_text("fusion: {}")
    [step] = rollout_steps(read_run(tmp_path), LIMITS)
    shown, plain = step["prompts"][0]["rollouts"]
    assert shown["turns"] == [{"reward": None, "solved": False, "segments": [["on", "a", 0, None]]}]
    assert "turns" not in plain and plain["segments"] == []


def write_evaluation(folder: Path, text: str = "") -> Path:
    """Two checkpoints, two benchmarks: hand 1 of gp_ood is forgotten, hand 2 stays right, gp_id/7 is wrong throughout."""
    models = []
    for step, solved in (
        (0, {("gp_ood", 1): 1, ("gp_ood", 2): 1, ("gp_id", 7): 0}),
        (40, {("gp_ood", 1): 0, ("gp_ood", 2): 1, ("gp_id", 7): 0}),
    ):
        sources = []
        for benchmark in ("gp_ood", "gp_id"):
            rows = {row: right for (of, row), right in solved.items() if of == benchmark}
            lines = [
                {"row": row, "number": 0, "correct": right, "score": float(right), "response": "r", "prompt": f"JQK|{row}{text}",
                 "stop": "solved" if right else "turns", "turns": [{**RIGHT, "text": text}] if right else [WRONG, WRONG]}
                for row, right in rows.items()
            ]  # fmt: skip
            write_lines(folder / "samples" / f"step_{step}" / benchmark / "samples.jsonl", lines)
            mean = sum(rows.values()) / len(rows)
            episodes = {"first_acc": mean, "other_rule": 0.25, "turns": 1.5}
            sources.append({"benchmark": benchmark, "source": benchmark + text, "accuracy": {"mean": mean, "low": 0.1, "high": 0.9},
                            "episodes": episodes, "loss": {"per_token": 0.02 + step}})  # fmt: skip
        models.append({"label": f"step_{step}", "step": step, "sources": sources})
    (folder / "results.json").write_text(json.dumps({"models": models}))
    return folder


def test_checkpoints_of_an_evaluation(tmp_path: Path) -> None:
    evaluations = read_evaluations([write_evaluation(tmp_path / "gp-sft")])
    solved, loss = curves(evaluations)
    assert (solved["title"], solved["unit"]) == ("gp-sft: solved", "share")
    assert {series["label"]: (series["x"], series["y"]) for series in solved["series"]} == {
        "gp_ood": ([0, 40], [1.0, 0.5]), "gp_id": ([0, 40], [0.0, 0.0]),
    }  # fmt: skip
    assert loss["series"][0]["y"] == [0.02, 40.02]
    [shown] = browser(evaluations, replace(LIMITS, validation_prompts=2))
    assert [step["step"] for step in shown["steps"]] == ["step_0", "step_40"]
    prompts = [[prompt["prompt"] for prompt in step["prompts"]] for step in shown["steps"]]
    assert prompts == [["gp_id, row 7: JQK|7", "gp_ood, row 1: JQK|1"]] * 2, "benchmarks in turns, what changed first"
    forgotten = shown["steps"][1]["prompts"][1]
    assert (forgotten["solved"], forgotten["of"]) == (0, 1) and len(forgotten["rows"][0]["turns"]) == 2
    assert forgotten["rows"][0]["fields"] == {"ended": "turns"}


def test_a_page_with_evaluations_and_verdicts(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = make_run(tmp_path / "run")
    evaluation = write_evaluation(tmp_path / "gp-sft", EVIL)
    (tmp_path / "forgetting.json").write_text(json.dumps({"seeds": [{"verdict": ["**Forgetting: yes.**", EVIL]}]}))
    page = build_report([run], evaluations=[evaluation], forgetting=[tmp_path])
    read = Reader(page)
    text = " ".join(read.texts)
    assert "Checkpoints on benchmarks" in text and "Forgetting: yes." in text and "10 % to 90 %" in text
    assert [tag for tag, _ in read.elements].count("script") == 2 and "<img" not in page
    assert any(attributes.get("data-browser") == "evaluations" for _, attributes in read.elements)
    assert len(read.data["evaluations"][0]["steps"]) == 2
    assert "Checkpoints on benchmarks" not in " ".join(Reader(build_report([run])).texts)


def test_folders_that_are_no_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--evaluation .*: holds no results\.json"):
        read_evaluations([tmp_path])
    (tmp_path / "results.json").write_text(json.dumps({"models": [3]}))
    with pytest.raises(ValueError, match="is no result of an evaluation"):
        read_evaluations([tmp_path])
    with pytest.raises(ValueError, match=r"--forgetting .*: holds no forgetting\.json"):
        read_verdicts([tmp_path])
