"""The file that is graded: every kind, names of columns, and what is said of a bad one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unify_posttrain.auditing.records import Record, read_records

ROWS: list[dict[str, Any]] = [
    {"response": "a", "ground_truth": "1", "version": 3, "expected": 1.0, "family": "sums"},
    {"response": "b\n", "ground_truth": "2", "version": None, "expected": 0, "family": None},
]
RECORDS = [Record(1, "a", "1", 3, True, "sums"), Record(2, "b\n", "2", None, False, "")]


@pytest.mark.parametrize("kind", ["rows.jsonl", "rows.json", "array.json", "rows.parquet", "marked.jsonl", "rows.txt"])
def test_every_kind_of_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / kind
    if kind == "rows.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif kind == "array.json":
        path.write_text(f" {json.dumps(ROWS, indent=1)}")
    else:
        mark = "\ufeff" if kind == "marked.jsonl" else ""
        path.write_text(mark + "\r\n".join(map(json.dumps, ROWS)) + "\r\n", encoding="utf-8")
    assert read_records(path) == RECORDS


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]))
    assert [record.place for record in read_records(path)] == [2, 4]


def test_names_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"input": "q", "output": "as verl writes", "gts": ["4", "four"], "mine": "x", "sum": 4}))
    assert read_records(path) == [Record(1, "as verl writes", ["4", "four"])]
    assert read_records(path, "mine", "sum") == [Record(1, "x", 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "holds no rows"),
        ("\n \n", "holds no rows"),
        ('{"response": "a", "ground_truth": "1"}\n{"response": ', r"rows.jsonl, line 2: invalid JSON"),
        ('{"response": "a", "ground_truth": "1"}\n[1]', "line 2: holds list and no JSON object"),
        ('{"response": "\udcff"}', "line 1: not UTF-8 text"),
        ('{"answer": "a", "gold": "1"}', "has no column response or output; it has answer, gold: choose one with --response"),
        (
            '{"response": "a", "gold": "1"}',
            "no column ground_truth or gts; it has response, gold: choose one with --ground-truth",
        ),
        ('{"response": 4, "ground_truth": "1"}', "row 1: response=4 must be a text"),
        ('{"response": "a", "ground_truth": "1", "expected": "yes"}', "row 1: expected='yes' must be 0 or 1"),
        ('{"response": "a", "ground_truth": "1", "version": 9}', "row 1: version=9 is unknown; choose one of 0, 1"),
        ('{"response": "a", "response": "b", "ground_truth": "1"}', "line 1: has the key 'response' twice"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=message):
        read_records(path)


def test_no_file_and_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file"):
        read_records(tmp_path / "absent.jsonl")
    with pytest.raises(ValueError, match="is no file"):
        read_records(tmp_path)
    (tmp_path / "torn.parquet").write_bytes(b"PAR1torn")
    with pytest.raises(ValueError, match="is no complete parquet file"):
        read_records(tmp_path / "torn.parquet")
    (tmp_path / "torn.json").write_text('[{"response": "a"}')
    with pytest.raises(ValueError, match="invalid JSON"):
        read_records(tmp_path / "torn.json")
    (tmp_path / "odd.json").write_text('[{"response": "a", "ground_truth": ""}, 3]')
    with pytest.raises(ValueError, match="row 2: holds int"):
        read_records(tmp_path / "odd.json")
