"""Which texts the page holds, and that it holds no more than asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.reporting.run import read_run
from unify_posttrain.reporting.samples import evenly, rollout_steps, validation_samples
from unify_posttrain.reporting.settings import load_settings

from .conftest import write_lines

LIMITS = load_settings().limits


@given(st.integers(0, 50), st.integers(1, 12))
def test_evenly(length: int, most: int) -> None:
    items = list(range(length))
    picked = evenly(items, most)
    assert len(picked) == min(length, most) and picked == sorted(set(picked))
    assert not items or (picked[-1] == items[-1] and (most == 1 or picked[0] == 0))
    gaps = {after - before for before, after in pairwise(picked)}
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_rollouts_by_step_and_prompt(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(tmp_path / "run"))
    steps = rollout_steps(run, replace(LIMITS, rollout_steps=3, rollout_prompts=3))
    assert [step["step"] for step in steps] == [1, 5, 10]  # positions 0, round(4.5), 9
    first = steps[0]["prompts"]
    # the zones take turns: rows 10 and 11 are routed, 12 and 13 are not
    assert [(prompt["zone"], prompt["solved"]) for prompt in first] == [("sft", 0), ("rl", 1), ("sft", 0)]
    routed, kept = first[:2]
    assert routed["rollouts"] == [] and routed["demonstrations"][0]["segments"] == [["demo", "worked<end>", 0, 0.0]]
    assert routed["demonstrations"][0]["weights"] == {"rl_weight": 0.0, "off_weight": 0.0, "sft_weight": 1.0}
    assert [row["score"] for row in kept["rollouts"]] == [1, 0, 0, 0] and kept["of"] == 4
    assert kept["rollouts"][0]["segments"] == [["hint", "given ", 0, None], ["on", "tried<end>", 0, 0.75]]  # 1 - 1/4
    assert kept["rollouts"][0]["fields"] == {"acc": "1"}
    assert kept["demonstrations"] == [{"kind": "not trained", "segments": [["untrained", "worked", 0, None]]}]


def test_limits(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    run = read_run(make_run(tmp_path / "run", text="x" * 100))
    limits = replace(
        LIMITS, rollout_steps=1, rollout_prompts=1, rollout_rows=2, characters=10, validation_steps=2, validation_prompts=3
    )
    [step] = rollout_steps(run, limits)
    assert step["step"] == 10 and len(step["prompts"]) == 1
    [prompt] = step["prompts"]
    assert len(prompt["rollouts"]) == 2 and prompt["hidden"] == 2 and len(prompt["prompt"]) == 10
    # "given " and "trie" make 10 characters; "d", 100 x and "<end>" are left out
    assert prompt["rollouts"][0]["segments"] == [["hint", "given ", 0, None], ["on", "trie", 106, 0.0]]
    samples = validation_samples(run, limits)
    assert samples["steps"] == [0, 10] and len(samples["prompts"]) == 3
    assert samples["prompts"][0]["answers"][0] == {"score": 0.0, "text": "0xxxxxxxxx", "cut": 91}


def test_a_dump_of_plain_verl(tmp_path: Path) -> None:
    """No uid, kinds or segments: rows of one prompt belong together."""
    (tmp_path / "config.yaml").write_text("trainer: {rollout_data_dir: /elsewhere/dumped}")
    rows = [{"input": f"p{i % 2}", "output": f"o{i}", "score": float(i), "gts": None, "step": 4} for i in range(4)]
    write_lines(tmp_path / "dumped" / "4.jsonl", [*rows, "torn"])
    [step] = rollout_steps(read_run(tmp_path), LIMITS)
    assert [prompt["prompt"] for prompt in step["prompts"]] == ["p0", "p1"]
    assert [row["segments"] for row in step["prompts"][1]["rollouts"]] == [[["on", "o3", 0, None]], [["on", "o1", 0, None]]]
    assert step["prompts"][0]["zone"] is None and step["prompts"][0]["gold"] is None


def test_rows_that_make_no_sense_do_not_stop_the_page(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    odd = [
        {"uid": "a", "segments": [["on"]], "output": "kept", "advantage": "high", "score": None},
        {
            "uid": "b",
            "segments": [["strange", "t"], ["on", "u"]],
            "advantage": [1.0, float("nan")],
            "row_id": "x",
            "row_kind": "other",
        },
        {"uid": "c"},
    ]
    write_lines(tmp_path / "rollouts" / "1.jsonl", odd)
    write_lines(tmp_path / "samples" / "1.jsonl", [{}, {"input": 3, "output": None, "score": "nan"}])
    prompts = rollout_steps(read_run(tmp_path), LIMITS)[0]["prompts"]
    assert [prompt["rollouts"][0]["segments"] for prompt in prompts] == [
        [["on", "kept", 0, None]],
        [["untrained", "t", 0, None], ["on", "u", 0, None]],
        [],
    ]
    assert [prompt["prompt"] for prompt in validation_samples(read_run(tmp_path), LIMITS)["prompts"]] == ["", "3"]


def test_validation_samples_follow_a_prompt(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    """k is solved from step 5 on if k < 5, from step 10 on if k < 8: all 8 are gained; a ninth, never solved, comes last."""
    run = read_run(make_run(tmp_path / "run"))
    samples = validation_samples(run, LIMITS)
    assert samples["steps"] == [0, 5, 10]
    by_prompt = {prompt["prompt"]: [answer["score"] for answer in prompt["answers"]] for prompt in samples["prompts"]}
    assert by_prompt["4?"] == [0, 1, 1] and by_prompt["7?"] == [0, 0, 1] and len(by_prompt) == 8


def test_changed_prompts_first_and_repeated_ones_apart(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("{}")
    scores = {"right": [1, 1], "wrong": [0, 0], "lost": [1, 0], "gained": [0, 1]}
    for position, step in enumerate((0, 5)):
        rows = [{"input": name, "output": "o", "score": found[position]} for name, found in scores.items()]
        write_lines(
            tmp_path / "samples" / f"{step}.jsonl", [*rows, {"input": "gained", "output": "second", "score": 1}][: 5 - position]
        )
    samples = validation_samples(read_run(tmp_path), LIMITS)
    assert [prompt["prompt"] for prompt in samples["prompts"]] == ["gained", "lost", "wrong", "right", "gained"]
    assert samples["prompts"][-1]["answers"][0]["text"] == "second" and samples["prompts"][-1]["answers"][1] is None
