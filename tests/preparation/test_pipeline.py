"""From source to files: faults of files and of rows, splits, what makes a second call do something, the report."""

from __future__ import annotations

import hashlib
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from rich.console import Console

from unify_posttrain import __version__
from unify_posttrain.preparation import report
from unify_posttrain.preparation.lengths import summary
from unify_posttrain.tasks import PREPARERS

COLUMNS = dict.fromkeys(("target", "hint", "images", "data_source", "ability", "id", "subject", "level")) | {
    "prompt": "q",
    "ground_truth": "a",
}
GOOD = [{"q": f"question {number}", "a": number} for number in range(20)]


@pytest.fixture
def convert(prepared: Callable) -> Callable[..., tuple[list[dict], dict]]:
    """Convert a source with columns q and a; returns rows and manifest."""

    def run(source: Path, **changes: Any) -> tuple[list[dict], dict]:
        return prepared("convert", source, **{"columns": COLUMNS, "max_bad_share": 0.5, **changes})

    return run


# --- faults of files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b"", r"a\.jsonl is empty"),
        ("a.jsonl", b'{"q": "x", "a": 1}\n{"q": "y", "a": \n{"q": "z", "a": 2}\n', r"a\.jsonl, line 2: invalid JSON"),
        ("a.jsonl", b'{"q": "x", "a": 1}\n{"q": "\xff\xfe", "a": 1}\n', r"a\.jsonl, line 2: not UTF-8 text \(byte 7\)"),
        ("a.json", b'[{"q": "x", "a": 1}, {"q": ', r"a\.json: invalid JSON"),
        ("a.parquet", b"PAR1 and then nothing", r"a\.parquet is no complete parquet file"),
        ("a.csv", b"q,a\n1,2\n", r"format must be \.parquet or \.json or \.jsonl"),
        ("a.jsonl", b'{"question": "x", "a": 1}\n', r"column 'q' is missing; present: question, a"),
    ],
)
def test_a_file_at_fault_is_one_clear_error(
    convert: Callable, tmp_path: Path, name: str, content: bytes, message: str, streaming: bool
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        convert(path, streaming=streaming)
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "out").rglob("*.parquet")) and not list((tmp_path / "out").rglob("*.json"))


def test_truncated_parquet_in_a_folder_is_named(convert: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(2):
        pq.write_table(pa.table({"q": ["x"], "a": ["1"]}), folder / f"train-{number}.parquet")
    whole = (folder / "train-1.parquet").read_bytes()
    (folder / "train-1.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"train-1\.parquet is no complete parquet file"):
        convert(folder)


def test_parquet_without_rows(convert: Callable, tmp_path: Path) -> None:
    pq.write_table(pa.table({"q": pa.array([], pa.string()), "a": pa.array([], pa.string())}), tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="holds no rows"):
        convert(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("source", "message"),
    [("nowhere/rows.jsonl", "does not exist"), ("", "prepare.task.source is not set"), ("https://x.org/a.jsonl", "does not exist")],
)
def test_sources_that_do_not_exist(settings_of: Callable, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PREPARERS["convert"](tmp_path, settings_of("convert", source=source, columns=COLUMNS))


def test_one_file_has_no_validation_split(settings_of: Callable, write: Callable, tmp_path: Path) -> None:
    source = write([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])
    with pytest.raises(ValueError, match=r"prepare\.task\.validation_split=validation: the file"):
        PREPARERS["tldr"](tmp_path / "out", settings_of("tldr", source=str(source)))


# --- faults of rows ----------------------------------------------------------------------------------------------------

FAULTY = [
    ({"q": None, "a": "1"}, "malformed", "'q': must be text or a list"),
    ({"q": "  ", "a": "1"}, "malformed", "'q': is empty"),
    ({"q": "x", "a": None}, "no_ground_truth", "'a': holds no ground truth"),
    ({"q": "x", "a": " "}, "no_ground_truth", "'a': holds no ground truth"),
]


@pytest.mark.parametrize(("row", "reason", "detail"), FAULTY)
def test_a_row_at_fault_is_dropped_and_counted_or_an_error(
    convert: Callable, write: Callable, row: dict, reason: str, detail: str
) -> None:
    source = write([{"q": "good", "a": "1"}, {"q": "good too", "a": "1"}, row])
    rows, manifest = convert(source)
    assert [made["extra_info"]["index"] for made in rows] == [0, 1]
    found = manifest["report"]["train"]
    assert found["dropped"] == {reason: 1} and found["read"] == 3 and found["kept"] == 2
    assert len(found["examples"]) == 1 and f"row 2: column {detail}" in found["examples"][0]
    with pytest.raises(ValueError, match="row 2: column") as raised:
        convert(source, on_bad_row="error")
    assert str(source) in str(raised.value) and "prepare.task.on_bad_row=drop" in str(raised.value)


def test_a_row_of_another_type_does_not_spoil_the_others(convert: Callable, write: Callable) -> None:
    rows, manifest = convert(write([{"q": "good", "a": "1"}, {"q": ["no", "text"], "a": "1"}, {"q": "too", "a": "2"}]))
    assert [row["prompt"][0]["content"] for row in rows] == ["good", "too"]
    assert manifest["report"]["train"]["dropped"] == {"malformed": 1}


def test_null_targets_are_dropped_or_kept_for_reinforcement_learning(convert: Callable, write: Callable) -> None:
    source = write([{"q": "a", "a": "1", "t": "done"}, {"q": "b", "a": "1", "t": None}, {"q": "c", "a": "1", "t": ""}])
    columns = {**COLUMNS, "target": "t"}
    rows, manifest = convert(source, columns=columns, max_bad_share=0.7)
    assert len(rows) == 1 and manifest["report"]["train"]["dropped"] == {"empty_target": 2}
    kept, _ = convert(source, columns=columns, missing_target="keep")
    assert [row["target"] for row in kept] == [[{"role": "assistant", "content": "done"}], None, None]


def test_too_many_faults_are_an_error(convert: Callable, write: Callable) -> None:
    source = write([{"q": "a", "a": "1"}, {"q": "b", "a": "2"}, {"q": "c", "a": None}, {"q": "d", "a": None}])
    assert len(convert(source, max_bad_share=0.5)[0]) == 2  # 2 of 4 is not more than half
    with pytest.raises(
        ValueError, match=r"2 of 4 rows are faulty \(2 no_ground_truth\), more than prepare.task.max_bad_share=0.49"
    ):
        convert(source, max_bad_share=0.49)


def test_duplicates_are_no_fault_and_no_row_left_is_an_error(convert: Callable, write: Callable) -> None:
    rows, manifest = convert(write([{"q": "a", "a": "1"}] * 9 + [{"q": " a ", "a": "2"}]), max_bad_share=0.0)
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["1"]
    assert manifest["report"]["train"]["dropped"] == {"duplicate": 9}
    assert len(convert(write([{"q": "a", "a": "1"}] * 9), deduplicate=False)[0]) == 9
    with pytest.raises(ValueError, match="none of 2 rows can be used"):
        convert(write([{"q": "a", "a": None}] * 2), max_bad_share=1.0)


def test_a_duplicate_that_was_dropped_first_leaves_room_for_the_next(convert: Callable, write: Callable) -> None:
    rows, manifest = convert(write([{"q": "a", "a": None}, {"q": "a", "a": "2"}, {"q": "a", "a": "3"}]))
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["2"]
    assert manifest["report"]["train"]["dropped"] == {"no_ground_truth": 1, "duplicate": 1}


# --- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_rows", [1, 3, 1000])
@pytest.mark.parametrize("streaming", [True, False])
def test_rows_held_out_by_seed(convert: Callable, write: Callable, tmp_path: Path, chunk_rows: int, streaming: bool) -> None:
    source = write(GOOD)
    train, manifest = convert(source, validation_rows=6, seed=3, chunk_rows=chunk_rows, streaming=streaming)
    validation = pq.read_table(tmp_path / "out" / "convert" / "validation.parquet").to_pylist()
    assert manifest["rows"] == {"train.parquet": 14, "validation.parquet": 6}
    answers = [[int(row["reward_model"]["ground_truth"]) for row in part] for part in (train, validation)]
    assert sorted(answers[0] + answers[1]) == list(range(20)) and [sorted(part) for part in answers] == answers
    assert [row["extra_info"]["index"] for row in validation] == list(range(6))
    assert {row["extra_info"]["split"] for row in train} == {"train"}
    assert {row["extra_info"]["split"] for row in validation} == {"validation"}
    assert answers[1] == sorted(random.Random(3).sample(range(20), 6))  # neither chunks nor streaming change the draw


def test_more_rows_held_out_than_there_are(convert: Callable, write: Callable) -> None:
    with pytest.raises(ValueError, match=r"prepare\.task\.validation_rows=20, but only 20 rows"):
        convert(write(GOOD), validation_rows=20)


def test_a_second_call_does_nothing_until_something_changes(convert: Callable, write: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "convert"

    def stamp() -> tuple[int, str]:
        return (folder / "train.parquet").stat().st_mtime_ns, (folder / "manifest.json").read_text()

    source = write(GOOD)
    convert(source)
    first = stamp()
    convert(source)
    convert(source, streaming=False, chunk_rows=2, max_prompt_length=7)  # none of them decides a row without a tokenizer
    assert stamp() == first
    for changes in ({"seed": 5}, {"template": "boxed"}, {"system": "A text."}, {"deduplicate": False}):
        convert(source)
        before = stamp()
        convert(source, **changes)
        assert stamp() != before, changes
    convert(source)
    before = stamp()
    convert(write([*GOOD, {"q": "one more", "a": 1}]))
    assert stamp() != before
    after = stamp()
    (folder / "train.parquet").write_bytes(b"broken")
    convert(source)
    assert stamp()[1] == after[1]  # rebuilt to the same digest
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "train.parquet"]


def test_manifest_says_where_the_rows_come_from(convert: Callable, write: Callable) -> None:
    source = write(GOOD)
    manifest = convert(source)[1]
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest["source"] == {"files": {"rows.jsonl": digest}}
    assert (manifest["format"], manifest["version"], manifest["commit"]) == (1, __version__, None)
    assert manifest["settings"]["columns"] == COLUMNS and "folder" not in manifest["settings"]


def test_files_of_several_sets_can_be_read_as_one(convert: Callable, prepared: Callable, write: Callable, tmp_path: Path) -> None:
    convert(write(GOOD))
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    prepared("tldr", write([row], "posts.jsonl"))
    files = [str(tmp_path / "out" / name / "train.parquet") for name in ("convert", "tldr")]
    assert len(load_dataset("parquet", data_files=files)["train"]) == 21


# --- settings and report -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", True),
        ("chunk_rows", 0),
        ("validation_rows", -1),
        ("streaming", "yes"),
        ("missing_target", "skip"),
        ("too_long", "cut"),
        ("on_bad_row", "ignore"),
        ("max_bad_share", 1.5),
        ("gold_version", "6"),
        ("quantiles", [50]),
        ("system", "lufy"),
        ("template", "no place for it"),
    ],
)
def test_settings_at_fault_are_named(convert: Callable, write: Callable, key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"prepare\.task\.{key}"):
        convert(write(GOOD), **{key: value})


def test_unknown_and_missing_settings(settings_of: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown keys \['sead'\]"):
        PREPARERS["dapo_math"](tmp_path, {**settings_of("dapo_math"), "sead": 1})
    with pytest.raises(ValueError, match=r"missing keys \['seed'\]"):
        PREPARERS["dapo_math"](tmp_path, {key: value for key, value in settings_of("dapo_math").items() if key != "seed"})


def test_quantiles_are_lengths_that_occur() -> None:
    # Sorted 1 1 2 3 10: half of five is reached at the third, 0.9 * 5 = 4.5 at the fifth; mean 17 / 5.
    assert summary([10, 1, 2, 1, 3], limit=2, quantiles=[0, 0.5, 0.8, 0.9]) == {
        "count": 5,
        "limit": 2,
        "over": 2,
        "mean": 3.4,
        "quantiles": {"0": 1, "0.5": 2, "0.8": 3, "0.9": 10},
    }
    assert summary([], limit=2, quantiles=[0.5]) is None


def test_think_opening_is_counted_once(word_tokenizer: str, prepared: Callable, write: Callable) -> None:
    row = {
        "data_source": "x",
        "prompt": [{"role": "user", "content": "q"}],
        "target": "<think>\na b",
        "reward_model": {"ground_truth": "1"},
    }
    opened = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}"
    for template, tokens in ((None, 4), (opened, 3)):  # <think> a b end; the template's own opening takes the first away
        changes = {"tokenizer": word_tokenizer, "chat_template": template}
        manifest = prepared("openr1_math", write([row]), **changes)[1]
        assert manifest["report"]["train"]["tokens"]["target"]["quantiles"]["1"] == tokens


def test_tokenizers_that_cannot_be_used(convert: Callable, write: Callable, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prepare\.task\.tokenizer=.* cannot be loaded"):
        convert(write(GOOD), tokenizer=str(tmp_path / "nothing"))


def test_report_is_printed_with_counts_and_lengths(convert: Callable, write: Callable, word_tokenizer: str, tmp_path: Path) -> None:
    convert(write([*GOOD, GOOD[0], {"q": "x", "a": None}]), tokenizer=word_tokenizer)
    console = Console(width=120, record=True, file=io.StringIO())
    for table in report.tables(tmp_path / "out" / "convert" / "manifest.json"):
        console.print(table)
    text = console.export_text()
    for part in ("read", "22", "dropped: duplicate", "dropped: no ground truth", "kept", "20", "train: prompt", "q0.5"):
        assert part in text


def test_folders_of_generated_tasks_have_no_report(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "rows": {}}))
    assert report.tables(tmp_path / "manifest.json") == []
