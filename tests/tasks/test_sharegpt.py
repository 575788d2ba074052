"""Conversations in the ShareGPT layout: what is exported can be converted back, and what is none is a counted drop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tasks.environments import task_settings
from unify_posttrain.preparation.rows import RowFault
from unify_posttrain.tasks import PREPARERS, sharegpt

HUMAN, GPT = {"from": "human", "value": "question"}, {"from": "gpt", "value": "answer"}


def convert(folder: Path, source: Path, *overrides: str) -> list[dict[str, Any]]:
    given = task_settings(
        "convert",
        f"prepare.task.source={source}",
        "prepare.task.layout=sharegpt",
        "prepare.task.columns.prompt=conversations",
        "prepare.task.constants.style=model",
        *overrides,
    )
    return list(pq.read_table(PREPARERS["convert"](folder, given)["train"]).to_pylist())


def test_what_is_exported_comes_back(tmp_path: Path) -> None:
    settings = task_settings("general_points", "prepare.task.export=sharegpt", "prepare.task.revise=0.5")
    settings["rows"] = {"train": 40, "gp_id": 1, "gp_id_seen": 0, "gp_ood": 0, "gp_ood_target": 0}
    paths = PREPARERS["general_points"](tmp_path / "made", settings)
    made = pq.read_table(paths["train"]).to_pylist()
    found = convert(tmp_path / "read", paths["sharegpt"])
    assert len(found) == 40 and {len(row["prompt"]) for row in found} == {1, 3}
    for before, after in zip(made, found, strict=True):
        assert [*after["prompt"], *after["target"]] == [*before["prompt"], *before["target"]]
        assert len(after["target"]) == 1  # the last answer; the turns before it are the prompt


def test_odd_rows_are_counted(tmp_path: Path) -> None:
    good = [{"id": number, "image": None, "conversations": [{**HUMAN, "value": f"q{number}"}, GPT]} for number in range(9)]
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([*good, {"id": 9, "image": None, "conversations": [GPT, HUMAN]}]))
    assert len(convert(tmp_path / "read", source)) == 9
    manifest = json.loads((tmp_path / "read" / "manifest.json").read_text())
    assert "must take turns" in json.dumps(manifest)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "must be a list of"),
        ([], "must be a list of"),
        ([HUMAN], "must take turns"),
        ([HUMAN, GPT, HUMAN], "must take turns"),
        ([HUMAN, HUMAN, GPT], "must take turns"),
        ([HUMAN, GPT, {"from": "system", "value": "x"}], "must take turns"),
        ([{"from": "system", "value": "x"}], "holds no answer"),
        ([HUMAN, {"from": "bot", "value": "x"}], r"an entry must be \{from: system \| human \| gpt"),
        ([HUMAN, {"from": "gpt", "value": " "}], "an entry must be"),
        ([{**HUMAN, "value": "<image> what is it?"}, GPT], "<image> stands for a picture"),
    ],
)
def test_what_is_no_conversation(value: Any, message: str) -> None:
    with pytest.raises(RowFault, match=message):
        sharegpt.read(value, "conversations")


def test_a_system_message_and_several_turns() -> None:
    prompt, target = sharegpt.read([{"from": "system", "value": "s"}, HUMAN, GPT, HUMAN, {**GPT, "value": "last"}], "c")
    assert [message["role"] for message in prompt] == ["system", "user", "assistant", "user"] and target == "last"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prepare.task.layout=alpaca", r"prepare.task.layout='alpaca' is unknown; choose one of columns, sharegpt"),
        ("prepare.task.columns.target=answer", r"prepare.task.columns.target=answer: a conversation holds its target"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, override: str, message: str) -> None:
    source = tmp_path / "rows.json"
    source.write_text(json.dumps([{"conversations": [HUMAN, GPT]}]))
    with pytest.raises(ValueError, match=message):
        convert(tmp_path, source, override)
