"""What an evaluation refuses or leaves out, and that it says so: prompts, images, ground truths."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chat_models import chat_tokenizer
from unify_posttrain.evaluation.benchmarks import Problem, read_problems
from unify_posttrain.evaluation.conduct import conduct
from unify_posttrain.evaluation.prompts import PromptSettings, render
from unify_posttrain.evaluation.rewards import check_ground_truths
from unify_posttrain.evaluation.tables import left_out, show

from .conftest import write_benchmark

MATH = {
    "path": "pkg://unify_posttrain.rewards.math",
    "name": "compute_score",
    "reward_kwargs": {"version": 6, "workers": 1, "timeout_seconds": 5.0, "memory_mb": 1024},
}
SETTINGS = PromptSettings(200, True, {}, None)


def problem(row: int, truth: object = "2", roles: tuple[str, ...] = ("user",)) -> Problem:
    return Problem(row, "sums", [{"role": role, "content": "1+1="} for role in roles], truth, {})


@pytest.mark.parametrize(
    ("roles", "words"),
    [(("system", "user"), "System role not supported; prepare the benchmark with"), (("user", "user"), "roles must alternate")],
)
def test_a_refused_prompt_names_benchmark_row_and_remedy(roles: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=rf"^benchmark sums, row 1: the chat template of .*{words}.*custom_chat_template=…$"):
        render(chat_tokenizer("gemma"), [problem(0), problem(1, roles=roles)], SETTINGS, "benchmark sums")


def test_odd_templates_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    render(chat_tokenizer("gemma"), [problem(0)], SETTINGS, "benchmark sums")
    assert "ends a turn with <end_of_turn>" in caplog.text


@pytest.mark.parametrize("truth", [None, True, {"a": 1}, [], float("nan"), ["2", None]])
def test_a_ground_truth_of_an_unusable_type_is_refused(truth: object) -> None:
    with pytest.raises(ValueError, match=r"^benchmark sums, row 1: reward_model\.ground_truth is "):
        check_ground_truths(MATH, "sums", [problem(0), problem(1, truth)])


def test_ground_truths_that_cannot_be_graded_are_said_before_anything_is_generated(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_ground_truths(MATH, "sums", [problem(0), problem(1, r"\text{}"), problem(2, ["3", "4"])])
    assert (
        r"1 of 3 ground truths cannot be graded (benchmark sums, row 1 holds \text{}), and their problems are left out"
        in caplog.text
    )
    with pytest.raises(ValueError, match="nor can any of the 1"):
        check_ground_truths(MATH, "sums", [problem(0, r"\text{}")])
    check_ground_truths({"path": "mine.py", "name": "compute_score"}, "sums", [problem(0, {"a": 1})])  # not ours to ask


def test_videos_and_pictures_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    write_benchmark(tmp_path / "plain.parquet", [("easy", "1+2=", "3")] * 2)
    table = pq.read_table(tmp_path / "plain.parquet")
    for values, refused in (([None, ["a.png"]], True), ([None, []], False)):
        file = tmp_path / f"{refused}.parquet"
        pq.write_table(table.append_column("videos", pa.array(values, pa.list_(pa.string()))), file)
        if refused:
            with pytest.raises(ValueError, match=r"row 1 \(and 0 more\): column 'videos' is not empty"):
                read_problems([file])
        else:
            assert len(read_problems([file])) == 2
    for picture, said in (("gone.png", "does not exist"), ("../a.png", "is outside of"), ("http://h/a.png", "is an address")):
        pq.write_table(table.append_column("images", pa.array([None, [picture]], pa.list_(pa.string()))), file)
        with pytest.raises(ValueError, match=rf"row 1: the picture \S+ {said}") as refusal:
            read_problems([file])
        assert "data.image_root" not in str(refusal.value), "a key that an evaluation does not have"


@pytest.mark.slow
@pytest.mark.usefixtures("plain_reward")
def test_the_console_says_how_many_were_left_out_and_why(
    settings: Callable, scripted: Callable, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = write_benchmark(tmp_path / "odd.parquet", [("easy", "1+2=", "bad"), ("easy", "2+2=", "4"), ("easy", "1" * 40, "5")])
    evaluation = settings(f"benchmarks=[{file}]", "max_prompt_length=20")
    evaluation = replace(evaluation, prompts=replace(evaluation.prompts, drop_overlong=True))
    results = conduct(evaluation, lambda *_: scripted())
    line = (
        "left out of odd, tiny: 2 of 3 problems: 1 whose ground truth the reward cannot use, 1 with a prompt of more than 20 tokens"
    )
    assert left_out(results) == [line]
    show(results, evaluation.output)
    assert line in " ".join(capsys.readouterr().out.split())
