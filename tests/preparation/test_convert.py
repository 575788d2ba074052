"""The converter: columns by name, nested ones, constants, hints and several targets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.preparation.rows import RowFault
from unify_posttrain.tasks import convert

NOWHERE: dict[str, str | None] = dict.fromkeys(convert.COLUMNS)
CONSTANTS = {"data_source": "mine", "ability": "math", "ground_truth": None, "style": "rule"}


def test_convert_reads_nested_columns_and_constants(prepared: Callable, write: Callable) -> None:
    source = write(
        [
            {"chat": [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "A1"}], "meta": {"answer": 3.0, "n": 1}},
            {"chat": [{"role": "user", "content": "Q2"}, {"role": "assistant", "content": "A2"}], "meta": {"answer": 0.5, "n": 2}},
        ]
    )
    columns = {"prompt": "chat.0.content", "target": "chat.1.content", "ground_truth": "meta.answer", "id": "meta.n"}
    rows, _ = prepared("convert", source, columns={**NOWHERE, **columns}, constants=CONSTANTS)
    assert [row["prompt"][0]["content"] for row in rows] == ["Q1", "Q2"]
    assert [row["target"][0]["content"] for row in rows] == ["A1", "A2"]
    assert [row["reward_model"]["ground_truth"] for row in rows] == ["3", "0.5"]
    assert [(row["data_source"], row["ability"], row["extra_info"]["id"]) for row in rows] == [
        ("mine", "math", "1"),
        ("mine", "math", "2"),
    ]
    assert "hint" not in rows[0]


def test_convert_hints_and_several_targets(prepared: Callable, tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(
        pa.table({"q": ["a", "b"], "t": [["one", "two", "one"], ["three"]], "h": ["x\ny\n", "z"], "gold": [["1", "2"], ["3"]]}),
        path,
    )
    columns = {**NOWHERE, "prompt": "q", "target": "t", "hint": "h", "ground_truth": "gold"}
    rows, _ = prepared("convert", path, columns=columns, constants=CONSTANTS)
    assert [row["target_lst"] for row in rows] == [["one", "two"], ["three"]]
    assert [row["hint"] for row in rows] == [["x\n", "y\n"], ["z"]]
    assert [row["reward_model"]["ground_truth"] for row in rows] == ['["1", "2"]', "3"]


@pytest.mark.parametrize(
    ("columns", "constants", "message"),
    [
        ({}, {}, "prompt comes from nowhere"),
        ({"prompt": "q"}, {}, "prepare.task.constants.ground_truth"),
        ({"prompt": "q", "ground_truth": "a"}, {"data_source": None}, "data_source comes from nowhere"),
        ({"prompt": "q", "answer": "a"}, {}, "give exactly the keys"),
        ({"prompt": "q", "ground_truth": "a"}, {"style": "judge"}, "choose one of rule, model"),
        ({"prompt": 3, "ground_truth": "a"}, {}, "prepare.task.columns.prompt=3"),
    ],
)
def test_convert_settings_at_fault(columns: dict, constants: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert.reader({**NOWHERE, **columns}, {**CONSTANTS, **constants})


def test_convert_for_a_reward_model_needs_no_ground_truth() -> None:
    reader = convert.reader({**NOWHERE, "prompt": "q"}, {**CONSTANTS, "style": "model"})
    assert reader.read({"q": "x"}).ground_truth == "" and reader.columns == ("q",) and not reader.has_targets


@given(st.text(min_size=1), st.text(min_size=1))
def test_convert_changes_no_text(question: str, answer: str) -> None:
    reader = convert.reader({**NOWHERE, "prompt": "q", "target": "t", "ground_truth": "q"}, CONSTANTS)
    row = json.loads(json.dumps({"q": question, "t": answer}))
    if not question.strip():
        with pytest.raises(RowFault, match="is empty"):
            reader.read(row)
    elif not answer.strip():
        assert reader.read(row).targets == ()
    elif not answer.lstrip().startswith("[{"):  # may be messages as JSON
        assert reader.read(row).prompt == [{"role": "user", "content": question}]
        assert reader.read(row).targets == (answer,)
