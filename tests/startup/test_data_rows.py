"""The start looks at every row, in every file, and says the true reason: before Ray, through the check that a run makes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import fingerprint

from tests.chat_models import QWEN3, save_chat_model
from unify_posttrain.config import compose_config
from unify_posttrain.rewards.truths import unusable
from unify_posttrain.startup.data_checks import DataReport, check_data
from unify_posttrain.startup.reader import make_reader
from unify_posttrain.startup.tokenizers import load_tokenizer

pytestmark = pytest.mark.slow  # every check filters in a process of its own

SYSTEM = {"role": "system", "content": "Be brief."}
MATH = (
    "reward.custom_reward_function.path=pkg://unify_posttrain.rewards.math",
    "reward.custom_reward_function.name=compute_score",
    "+reward.custom_reward_function.reward_kwargs={version: 6, workers: 1, timeout_seconds: 5.0, memory_mb: 1024}",
)


def row(question: str = "1+1=", **changes: Any) -> dict[str, Any]:
    return {
        "data_source": "sums",
        "prompt": [{"role": "user", "content": question}],
        "target": "2",
        "extra_info": None,
        "reward_model": {"style": "rule", "ground_truth": "2"},
        **changes,
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    home = tmp_path_factory.mktemp("models")
    folders = {form: save_chat_model(home / form, form) for form in ("gemma", "qwen3", "llama")}
    opening = QWEN3.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    return {**folders, "opening": save_chat_model(home / "opening", "qwen3", template=opening)}


@pytest.fixture
def check(models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DataReport]:
    """check(rows or [rows of a file, …], *overrides, model=…, algorithm=…) -> the report of the start's check of the data."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path))

    def run(
        rows: Sequence[Any], *overrides: str, model: str = "qwen3", algorithm: str = "grpo", suffix: str = "parquet"
    ) -> DataReport:
        files = []
        for number, part in enumerate(rows if isinstance(rows[0], list) else [rows]):
            files.append(str(tmp_path / f"part{number}.{suffix}"))
            if suffix == "parquet":
                pq.write_table(pa.Table.from_pylist(part), files[-1])
            else:
                Path(files[-1]).write_text("".join(json.dumps(each) + "\n" for each in part))
        return check_data(config(files, overrides, models[model], algorithm))

    return run


def config(files: Sequence[str], overrides: Sequence[str], model: Path, algorithm: str) -> Any:
    small = ["data.train_batch_size=2", "actor_rollout_ref.actor.ppo_mini_batch_size=2", "trainer.total_training_steps=1"]
    lengths = ["data.max_prompt_length=200", "data.max_response_length=100"]
    paths = [f"data.train_files={list(files)}", f"data.val_files={list(files)}", f"actor_rollout_ref.model.path={model}"]
    return compose_config(["task=arithmetic", f"algorithm={algorithm}", *small, *lengths, *paths, *overrides])


# --- every row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"prompt": None}, "column 'prompt' must be a non-empty list of {role, content}, not null"),
        ({"prompt": []}, "and is empty"),
        ({"prompt": [{"role": "user", "content": None}]}, r"but message 0 \(user\) has no content \(null\)"),
        ({"prompt": [{"role": None, "content": "x"}]}, "but message 0 has the role None"),
        ({"prompt": [{"role": "user", "content": " "}]}, "but its last message is empty"),
        ({"data_source": None}, "column 'data_source' must be text, not None"),
        ({"data_source": " "}, "column 'data_source' must be text, not ' '"),
        ({"extra_info": "{}"}, "column 'extra_info' must be a mapping or null, not '{}'"),
        ({"reward_model": None}, "column 'reward_model' must hold a ground_truth, not 'None'"),
        ({"reward_model": {"style": "rule", "ground_truth": None}}, r"reward_model\.ground_truth is null; give one"),
    ],
)
def test_a_fault_of_any_row_is_named_with_its_file(check: Callable, changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=rf"data file .*part0\.parquet, row 2: .*{words}"):
        check([row(), row(), row(**changes), row()])
    with pytest.raises(ValueError, match=rf"data file .*part1\.parquet, row 1: .*{words}"):
        check([[row(), row()], [row(), row(**changes)]])


def test_prompts_that_are_text_name_the_command_that_makes_messages(check: Callable) -> None:
    with pytest.raises(ValueError, match=r"row 0: column 'prompt' must be .*, not text '1\+1='; python -m .*prepare task=convert"):
        check([row(prompt="1+1="), row(prompt="1+1=")])


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            [{"role": "assistant", "content": "2"}, {"role": "user", "content": "?"}],
            r"holds 2 messages \(assistant, user\); those of several turns are assistant, user, …, assistant",
        ),
        ([{"role": "user", "content": "2"}], r"must be one message of the assistant with text content, not .*'role': 'user'"),
        ([{"role": "assistant", "content": None}], r"must be one message of the assistant with text content, not .*None"),
    ],
)
def test_a_target_that_cannot_be_trained_is_refused_whatever_the_policies(check: Callable, target: list, words: str) -> None:
    fine = [{"role": "assistant", "content": "2"}]
    with pytest.raises(ValueError, match=rf"part0\.parquet, row 2 \(training row 2\): column 'target' {words}"):
        check([row(target=fine), row(target=fine), row(target=target)], algorithm="sft")


def test_several_targets_are_a_list(check: Callable) -> None:
    with pytest.raises(ValueError, match=r"row 0 \(training row 0\): column 'target_lst' must be a list of texts"):
        check([row(target_lst="abc"), row(target_lst="abc")], algorithm="sft")


def test_images_without_a_processor_are_refused(check: Callable) -> None:
    rows = [row(images=None), row(images=["a.png", "b.png"])]
    with pytest.raises(ValueError, match=r"part0\.parquet, row 1: column 'images' holds 2 of them, and the model has no processor"):
        check(rows)
    assert check([row(images=None), row(images=[])]).train_rows == 2
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image", "text": None}]
    with pytest.raises(ValueError, match=r"row 0: column 'prompt' shows an image or a video, and the model has no processor"):
        check([row(prompt=[{"role": "user", "content": parts}])] * 2)


# --- templates ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([SYSTEM, {"role": "user", "content": "x"}], r"\(roles: system, user\): System role not supported"),
        ([{"role": "user", "content": "x"}] * 2, r"\(roles: user, user\): Conversation roles must alternate"),
    ],
)
def test_a_refused_prompt_is_an_error_and_no_length(check: Callable, models: Mapping[str, Path], prompt: list, words: str) -> None:
    with pytest.raises(ValueError, match=rf"part0\.parquet, row 2: the chat template of .*gemma refuses the prompt {words}"):
        check([row(), row(), row(prompt=prompt)], model="gemma")
    assert check([row(), row(), row(prompt=prompt)], model="llama").train_rows == 3
    composed = config(["x"], (), models["gemma"], "sft")
    from unify_posttrain.algorithms import build_algorithm

    fusion = build_algorithm(composed_actor(composed)).fusion
    reader = make_reader(load_tokenizer(composed), fusion, {})
    with pytest.raises(ValueError, match=rf"training row 7: the chat template of .*{words}"):
        reader.read(7, prompt, {"target": "2"}, step=1)


def composed_actor(composed: Any) -> Any:
    from omegaconf import OmegaConf

    return OmegaConf.to_container(composed.actor_rollout_ref.actor, resolve=True)


def test_the_start_warns_of_ends_and_of_thinking(check: Callable, caplog: pytest.LogCaptureFixture) -> None:
    thinks = [row(target="2"), row(target="<think>\nSo.\n</think>\n2")]
    check([row(), row()], model="gemma")
    assert "ends a turn with <end_of_turn>, and the end token of the tokenizer is <eos>" in caplog.text
    caplog.clear()
    check(thinks, "+data.apply_chat_template_kwargs.enable_thinking=false", algorithm="sft")
    assert "the targets of 1 of 2 rows (first: data file" in caplog.text
    assert "part0.parquet, row 1) think, but the chat template closes thinking" in caplog.text
    caplog.clear()
    check(thinks, algorithm="sft")
    assert caplog.text == ""
    check(thinks, algorithm="sft", model="opening")
    assert "row 0) never end the thinking that the chat template opens" in caplog.text


def test_a_hint_does_not_open_thinking_again(check: Callable) -> None:
    rows = [row(hint=["So. ", "2"]), row(hint=["<think>\n", "So."])]
    assert check(rows, algorithm="uft").train_rows == 2
    with pytest.raises(ValueError, match=r"row 1: column 'hint' begins with <think>, which the chat template of .* has opened"):
        check(rows, algorithm="uft", model="opening")
    with pytest.raises(ValueError, match=r"row 0 \(training row 0\): column 'hint' must be a list of sentences"):
        check([row(hint="So."), row(hint="So.")], algorithm="uft")


# --- ground truths -----------------------------------------------------------------------------------------------------


def truth(value: Any) -> dict[str, Any]:
    return row(reward_model={"style": "rule", "ground_truth": value})


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (True, "is of type bool: True"),
        ({"a": "2"}, "is of type dict"),
        (float("nan"), "is nan"),
        (2.0**60, r"is the float 1\.15\d*e\+18, which stands for several whole numbers"),
        (datetime(2024, 5, 1), "is of type datetime"),
        ([], "is an empty list"),
        (" ", "is empty"),
    ],
)
def test_a_ground_truth_of_an_unusable_type_is_refused_with_row_and_key(check: Callable, value: Any, words: str) -> None:
    with pytest.raises(ValueError, match=rf"part0\.parquet, row 0: reward_model\.ground_truth {words}"):
        check([truth(value), truth(value)], *MATH)


def test_ground_truths_that_cannot_be_graded_are_counted_at_the_start(check: Callable, caplog: pytest.LogCaptureFixture) -> None:
    report = check([truth("2"), truth(r"\text{}"), truth("3")], *MATH)
    assert report.masked_truths == 2  # of both splits, which are one file here
    assert r"1 of 3 ground truths cannot be graded (data file" in caplog.text
    assert r"part0.parquet, row 1 holds \text{}), and their prompts are masked" in caplog.text
    with pytest.raises(ValueError, match=r"row 0: reward_model\.ground_truth .* cannot be graded, nor can any of the 2"):
        check([truth(r"\text{}"), truth(r"\text{}")], *MATH)


def test_the_verifier_of_a_generated_task_is_asked_about_every_row(check: Callable) -> None:
    with pytest.raises(
        ValueError, match=r"part0\.parquet, row 0: reward_model\.ground_truth of .* must be a string of digits, got int"
    ):
        check([truth(2), truth(2)])


@pytest.mark.parametrize("value", ["2", 2, 2.5, 0, [1, 2.5], ["1", 2], 2**60])
def test_numbers_and_lists_of_them_are_of_a_type_that_can_be_used(value: Any) -> None:
    assert unusable(value) is None


def test_functions_of_others_take_what_they_like(check: Callable, tmp_path: Path) -> None:
    own = tmp_path / "mine.py"
    own.write_text("def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n    return 1.0\n")
    function = f"reward.custom_reward_function.path={own}"
    assert check([truth({"target": 3}), truth({"target": 4})], function).masked_truths == 0


# --- files -------------------------------------------------------------------------------------------------------------


def test_large_and_plain_text_and_lists_are_read_together(check: Callable, models: Mapping[str, Path], tmp_path: Path) -> None:
    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    large = pa.large_list(pa.struct([("role", pa.large_string()), ("content", pa.large_string())]))
    truths = [pa.struct([("style", kind), ("ground_truth", kind)]) for kind in (pa.string(), pa.large_string())]
    schemas = [
        pa.schema([("data_source", pa.string()), ("prompt", messages), ("target", pa.string()), ("reward_model", truths[0])]),
        pa.schema(
            [("data_source", pa.large_string()), ("prompt", large), ("target", pa.large_string()), ("reward_model", truths[1])]
        ),
    ]
    files = [str(tmp_path / f"{number}.parquet") for number in range(2)]
    for file, schema in zip(files, schemas, strict=True):
        pq.write_table(pa.Table.from_pylist([row(), row()], schema=schema), file)
    assert check_data(config(files, (), models["qwen3"], "sft")).train_rows == 4


def test_files_that_differ_in_a_column_are_named(check: Callable) -> None:
    with pytest.raises(ValueError, match=r"part0\.parquet and .*part1\.parquet differ in the type of column 'target'"):
        check([[row(), row()], [row(target=3), row(target=4)]])


def test_json_keeps_dates_and_digits_and_a_mark_of_byte_order(models: Mapping[str, Path], tmp_path: Path) -> None:
    from unify_posttrain.startup.dataset import FusionDataset

    rows = [row(date="2024-05-01", large=2**53 + 1, half=0.5), row(date="2024-05-02", large=3, half=1.5)]
    file = tmp_path / "rows.json"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(rows).encode())
    composed = config([str(file)], (), models["qwen3"], "grpo")
    frame = FusionDataset([str(file)], load_tokenizer(composed), composed.data).dataframe
    assert frame["date"][:] == ["2024-05-01", "2024-05-02"] and frame["large"][:] == [2**53 + 1, 3]
    rows[1]["large"] = 0.5  # no type holds both
    file.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match=r"rows\.json: column 'large' holds values of several types"):
        check_data(composed)


def test_a_row_of_json_that_cannot_be_held_is_named(models: Mapping[str, Path], tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row()) + "\n" + '{"prompt": 1, "prompt": 2}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, row 1: .*twice"):
        check_data(config([str(file)], (), models["qwen3"], "grpo"))
    file.write_text(json.dumps(row()) + "\n{\n")
    with pytest.raises(ValueError, match=r"^data file: .*rows\.jsonl, line 2: invalid JSON"):
        check_data(config([str(file)], (), models["qwen3"], "grpo"))


def test_lengths_of_few_prompts_are_counted_and_of_many_remembered(check: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """To make a fingerprint of tokenizer and configuration, under which `datasets` would find them again, takes longer."""
    hashed = []
    making = fingerprint.Hasher.hash

    def hash_of(value: Any) -> str:
        hashed.append(value)
        return making(value)

    def named() -> int:
        return sum(getattr(value, "__name__", "") == "_lengths" for value in hashed)

    monkeypatch.setattr(fingerprint.Hasher, "hash", staticmethod(hash_of))
    long = row(prompt=[{"role": "user", "content": "a long question " * 300}])
    found = check([row(), long, row()])
    assert named() == 0
    monkeypatch.setattr("unify_posttrain.startup.dataset.WORTH_REMEMBERING", 1)
    again = check([row(), long, row()])
    assert named() > 0
    assert [len(data) for data in found.datasets] == [len(data) for data in again.datasets] == [2, 2]
