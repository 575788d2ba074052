"""Values of public files: digits, dates, stored messages, images, folders of several formats, and lengths as the trainer counts."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.chat_models import chat_tokenizer
from unify_posttrain.preparation.lengths import TokenCounter
from unify_posttrain.preparation.rows import Candidate, RowFault, ground_truth, messages, optional_text, targets
from unify_posttrain.tasks import convert

COLUMNS = {**dict.fromkeys(convert.COLUMNS), "prompt": "q", "ground_truth": "a"}
CONSTANTS = {"data_source": "mine", "ability": "math", "ground_truth": None, "style": "rule"}
SETTINGS: dict[str, Any] = {"columns": COLUMNS, "constants": CONSTANTS}
EXACT = "12345678901234567891"  # beyond 2^63, and no float


@pytest.fixture
def converted(prepared: Callable) -> Callable:
    """converted(source, **changes) -> (rows, manifest) of the converter, without a share of bad rows that it would stop at."""
    return lambda source, **changes: prepared("convert", source, **{**SETTINGS, "max_bad_share": 1.0, **changes})


def truths(rows: list[dict]) -> list[str]:
    return [row["reward_model"]["ground_truth"] for row in rows]


# --- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_numbers_of_json_keep_their_digits(converted: Callable, tmp_path: Path, name: str) -> None:
    written = {
        "9007199254740993": "9007199254740993",
        EXACT: EXACT,
        f"{EXACT}.0": EXACT,
        f"{EXACT}.5": f"{EXACT}.5",
        "0.5": "0.5",
        "2.0": "2",
        "1e22": "1" + 22 * "0",
        "-1e3": "-1000",
        "0.1234567890123456789": "0.1234567890123456789",
        "[9007199254740993, 0.5]": '["9007199254740993", "0.5"]',
        '["12", 13]': '["12", "13"]',
    }
    lines = [f'{{"q": "{number}", "a": {text}}}' for number, text in enumerate(written)]
    source = tmp_path / name
    source.write_text("[" + ", ".join(lines) + "]" if name == "rows.json" else "\n".join(lines))
    assert truths(converted(source)[0]) == list(written.values())


def test_a_float_that_stands_for_several_numbers_is_a_fault_with_its_place(converted: Callable, tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"q": ["x", "y"], "a": [0.5, 2.0**53]}), source)
    rows, manifest = converted(source)
    assert truths(rows) == ["0.5"]
    (example,) = manifest["report"]["train"]["examples"]
    assert "rows.parquet, split train, row 1: column 'a': holds 9007199254740992.0 as a float" in example
    with pytest.raises(ValueError, match="write it as text, or as an integer in a column without floats"):
        converted(source, on_bad_row="error")


def test_decimals_and_mappings() -> None:
    assert ground_truth(Decimal("142.00"), "a") == "142" and ground_truth(Decimal("0.125"), "a") == "0.125"
    assert json.loads(ground_truth({"target": 98, "numbers": [44, 19.5]}, "a")) == {"target": 98, "numbers": [44, 19.5]}
    with pytest.raises(RowFault, match="stands for several whole numbers"):
        ground_truth({"target": 2.0**60}, "a")
    assert optional_text(1.5) == "1.5"


def test_text_that_looks_like_a_date_stays_text(converted: Callable, tmp_path: Path) -> None:
    source = tmp_path / "rows.jsonl"
    dates = ["2024-05-01", "2024-05-01T12:00:00", "12:30", "05/01/2024"]
    source.write_text("\n".join(json.dumps({"q": date, "a": date}) for date in dates))
    rows, _ = converted(source)
    assert truths(rows) == dates and [row["prompt"][0]["content"] for row in rows] == dates
    with pytest.raises(RowFault, match=r"not a date \(2024-05-01\), which its file holds in place of text"):
        import datetime

        ground_truth(datetime.date(2024, 5, 1), "a")


# --- messages ----------------------------------------------------------------------------------------------------------

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1="}]


@pytest.mark.parametrize("text", [json.dumps(CHAT), "\ufeff " + json.dumps(CHAT, indent=1), "\n" + json.dumps(CHAT)])
def test_messages_stored_as_json_are_messages(text: str) -> None:
    assert messages(text, "q") == CHAT
    assert messages(json.dumps(CHAT[1]), "q") == CHAT[1:]


@pytest.mark.parametrize("text", ["[1, 2] is a list", "[{not json", '{"a": 1}', "[]", "[1]"])
def test_text_that_begins_like_json_is_a_question(text: str) -> None:
    assert messages(text, "q") == [{"role": "user", "content": text}]


def test_messages_as_python_prints_them_are_a_fault() -> None:
    with pytest.raises(RowFault, match="holds messages as Python prints them, not as JSON"):
        messages(str(CHAT), "q")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (json.dumps(CHAT)[:-9], "holds messages as JSON that cannot be read: invalid JSON"),
        ('[{"from": "human", "value": "1+1="}]', "holds messages of `from` and `value`"),
    ],
)
def test_messages_that_cannot_be_read_are_no_question(text: str, words: str) -> None:
    for read in (messages, targets):
        with pytest.raises(RowFault, match=words):
            read(text, "q")


@pytest.mark.parametrize("value", [["1", None], ["1", True], ["1", " "]])
def test_a_list_of_answers_without_one_is_a_fault(value: list) -> None:
    with pytest.raises(RowFault, match=r"holds no ground truth|must be text, a number"):
        ground_truth(value, "a")


def test_stored_messages_are_checked_as_others() -> None:
    with pytest.raises(RowFault, match="ends with a message of the assistant"):
        messages(json.dumps([*CHAT, {"role": "assistant", "content": "2"}]), "q")
    with pytest.raises(RowFault, match="a message must be"):
        messages(json.dumps([{"role": "user", "content": None}]), "q")


# --- files -------------------------------------------------------------------------------------------------------------


def test_a_mark_of_byte_order_before_a_list(converted: Callable, tmp_path: Path) -> None:
    source = tmp_path / "rows.json"
    for begin in ("\ufeff", "\ufeff\n ", ""):
        source.write_text(begin + json.dumps([{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]), encoding="utf-8")
        assert truths(converted(source)[0]) == ["1", "2"]


def lines(path: Path, *questions: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"q": question, "a": "1"}) + "\n" for question in questions))


def parquet(path: Path, *questions: str, kind: pa.DataType | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [pa.array(list(values), kind or pa.string()) for values in (questions, ["1"] * len(questions))]
    pq.write_table(pa.Table.from_arrays(columns, names=["q", "a"]), path)


def test_a_folder_of_two_formats_is_read_whole(converted: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    parquet(folder / "train-00000-of-00002.parquet", "x", "y")
    lines(folder / "train-00001-of-00002.jsonl", "z")
    assert sorted(row["prompt"][0]["content"] for row in converted(folder)[0]) == ["x", "y", "z"]


@pytest.mark.parametrize("name", ["more.jsonl", "train.csv", "data/rows.parquet", "train.arrow"])
def test_a_file_that_no_split_takes_is_named(converted: Callable, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "both"
    parquet(folder / "train.parquet", "x")
    lines(folder / name, "z")
    with pytest.raises(ValueError, match=rf"both: {name} would not be read \(.*read are train: train\.parquet"):
        converted(folder)
    (folder / name).rename(folder / "dataset_info.json")  # what describes data is none
    assert len(converted(folder)[0]) == 1


def test_large_and_plain_arrow_text_together(converted: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    for number, kind in enumerate((pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string()))):
        parquet(folder / f"train-{number:05}-of-00004.parquet", f"x{number}", kind=kind)
    assert [row["prompt"][0]["content"] for row in converted(folder)[0]] == ["x0", "x1", "x2", "x3"]


def test_a_fault_names_the_file_of_a_folder_and_the_row_in_it(converted: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "both"
    lines(folder / "train-00000-of-00002.jsonl", "x", "y")
    lines(folder / "train-00001-of-00002.jsonl", "z", " ")
    with pytest.raises(ValueError, match=r"both, split train, train-00001-of-00002\.jsonl, row 1: column 'q': is empty"):
        converted(folder, on_bad_row="error")


def test_images_that_are_left_out_are_counted(converted: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = {
        "q": ["x", "y", "z"],
        "a": ["1", "2", "3"],
        "images": pa.array([["a.png"], [], None]),
        "figure": pa.array([{"bytes": b"P", "path": None}, {"bytes": b"P", "path": "b.png"}, None], stored),
        "image_caption": ["a cat"] * 3,
    }
    source = tmp_path / "rows.parquet"
    pq.write_table(pa.table(table), source)
    with caplog.at_level(logging.WARNING):
        _, manifest = converted(source)
    assert manifest["report"]["train"]["media_left_out"] == {"images": 1, "figure": 2}
    assert "2 of 3 rows have images, sounds or videos in column 'figure'; the rows that are written are text" in caplog.text


# --- lengths -----------------------------------------------------------------------------------------------------------


def candidate(*targets: str, prompt: list | None = None) -> Candidate:
    return Candidate("x", prompt or [{"role": "user", "content": "1+1="}], "2", targets)


def test_lengths_are_counted_with_the_options_of_the_template(prepared: Callable, tmp_path: Path, settings_of: Callable) -> None:
    from unify_posttrain.config import compose_config

    tokenizer = chat_tokenizer("qwen3")
    tokenizer.save_pretrained(tmp_path / "model")
    options = {"enable_thinking": False}
    for given in ({}, options):
        ids = tokenizer.apply_chat_template(candidate().prompt, add_generation_prompt=True, **given)
        assert TokenCounter(tokenizer, given).measure([candidate()]) == [(len(ids), [])]
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"q": "1+1=", "a": "2"}))
    _, manifest = prepared("convert", source, **SETTINGS, tokenizer=str(tmp_path / "model"), chat_template_kwargs=options)
    assert manifest["report"]["train"]["tokens"]["prompt"]["quantiles"]["1"] == len(ids)
    config = compose_config(["task=convert", "algorithm=grpo", "+data.apply_chat_template_kwargs.enable_thinking=false"])
    assert config.prepare.task.chat_template_kwargs == options  # the trainer's, unless it is told otherwise


def test_lengths_count_one_opening_and_one_end() -> None:
    tokenizer = chat_tokenizer("qwen3")
    opening = TokenCounter(
        chat_tokenizer("qwen3", template="{{ messages[0]['content'] }}{% if add_generation_prompt %}<think>\r\n{% endif %}")
    )
    plain = TokenCounter(tokenizer)
    for counter, thinks in ((opening, 0), (plain, len("<think>\n"))):
        ((_, lengths),) = counter.measure([candidate("<think>\nSo.", "<think>\nSo.<|im_end|>", "<think>\nSo.<|im_end|>\n")])
        assert lengths == [thinks + len("So.") + 1] * 3


def test_a_refused_prompt_ends_prepare_with_its_row(converted: Callable, tmp_path: Path) -> None:
    chat_tokenizer("gemma").save_pretrained(tmp_path / "model")
    source = tmp_path / "rows.jsonl"
    source.write_text("\n".join(json.dumps({"q": prompt, "a": "2"}) for prompt in ([CHAT[1]], CHAT)))
    with pytest.raises(ValueError) as refused:
        converted(source, tokenizer=str(tmp_path / "model"))
    words = ("rows.jsonl, split train, row 1: the chat template of", "System role not supported", "set prepare.task.system=none")
    assert all(each in str(refused.value) for each in words) and "prepare.task.chat_template=…" in str(refused.value)
    assert len(converted(source, tokenizer=str(tmp_path / "model"), system="none", deduplicate=False)[0]) == 2


def test_prepare_warns_of_ends_and_of_thinking(converted: Callable, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chat_tokenizer("qwen3", end="<|endoftext|>").save_pretrained(tmp_path / "model")
    source = tmp_path / "rows.jsonl"
    source.write_text(json.dumps({"q": "x", "a": "2", "t": "<think>\nSo.</think>2"}))
    with caplog.at_level(logging.WARNING):
        converted(
            source,
            tokenizer=str(tmp_path / "model"),
            columns={**COLUMNS, "target": "t"},
            chat_template_kwargs={"enable_thinking": False},
        )
    assert "1 targets think, but the chat template closes thinking" in caplog.text
    assert "ends a turn with <|im_end|>, and the end token of the tokenizer is <|endoftext|>" in caplog.text
