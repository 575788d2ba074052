"""Test sets in their published columns: prompts, ground truths, choices, and rows at fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from unify_posttrain.preparation.rows import RowFault, schema
from unify_posttrain.tasks import PREPARERS, benchmarks

PUBLISHED: dict[str, list[dict]] = {
    "aime24": [{"id": 60, "problem": "Find x.", "solution": "…", "answer": "033", "url": "…", "year": "2024"}],
    "aime25": [{"problem": "Find y.", "answer": "70", "id": "0"}],
    "amc": [{"id": 1, "problem": "Find z.", "answer": 142.0, "url": "…"}],
    "math500": [
        {"problem": "p", "solution": "s", "answer": "\\frac{1}{2}", "subject": "Algebra", "level": 5, "unique_id": "test/a/1.json"}
    ],
    "minerva": [{"question": "How far?", "answer": "1.5 m"}],
    "olympiad": [
        {
            "id": 1606,
            "question": "Find $T$.",
            "solution": ["…"],
            "final_answer": ["$2$", "$-3$"],
            "context": "Let $a=1$.",
            "answer_type": "Numerical",
            "unit": None,
            "is_multiple_answer": True,
            "subfield": "Algebra",
        }
    ],
    "arc_c": [
        {"id": "M_1", "question": "Why?", "choices": {"text": ["so", "no", "yes"], "label": ["1", "2", "3"]}, "answerKey": "3"}
    ],
    "gpqa_diamond": [
        {"Record ID": "rec1", "Subdomain": "Optics", "Question": "Which?", "Correct Answer": " right "}
        | {f"Incorrect Answer {number}": f"wrong {number}" for number in (1, 2, 3)}
    ],
    "mmlu_pro": [
        {"question_id": 70, "question": "Q", "options": ["x", "y", "z"], "answer": "B", "answer_index": 1, "category": "law"}
    ],
}
EXPECTED = {  # ground truth, id, subject, level
    "aime24": ("33", "60", None, None),
    "aime25": ("70", "0", None, None),
    "amc": ("142", "1", None, None),
    "math500": ("\\frac{1}{2}", "test/a/1.json", "Algebra", "5"),
    "minerva": ("1.5 m", None, None, None),
    "olympiad": ("2, -3", "1606", "Algebra", None),
    "arc_c": ("C", "M_1", None, None),
    "mmlu_pro": ("B", "70", "law", None),
}


def test_all_benchmarks_in_their_published_columns(settings_of: Callable, write: Callable, tmp_path: Path) -> None:
    settings = settings_of("benchmarks")
    catalog = {
        name: {**settings["catalog"][name], "source": str(write(rows, f"sets/{name}.jsonl"))} for name, rows in PUBLISHED.items()
    }
    paths = PREPARERS["benchmarks"](tmp_path / "out", {**settings, "catalog": catalog})
    assert list(paths) == settings["sets"] == list(PUBLISHED)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        file for name in PUBLISHED for file in (f"{name}.parquet", f"{name}.manifest.json")
    }
    found = {name: pq.read_table(path) for name, path in paths.items()}
    assert len({table.schema for table in found.values()}) == 1  # verl can read several as one set
    assert found["amc"].schema.names == schema().names
    rows = {name: table.to_pylist()[0] for name, table in found.items()}
    assert all(row["data_source"] == name and row["extra_info"]["split"] == "test" for name, row in rows.items())
    for name, expected in EXPECTED.items():
        details = rows[name]["extra_info"]
        assert (rows[name]["reward_model"]["ground_truth"], details["id"], details["subject"], details["level"]) == expected
    assert rows["olympiad"]["prompt"] == [{"role": "user", "content": "Let $a=1$.\n\nFind $T$."}]
    assert "Why?\n\nA. so\nB. no\nC. yes\n" in rows["arc_c"]["prompt"][0]["content"]
    gpqa = rows["gpqa_diamond"]
    assert f"\n{gpqa['reward_model']['ground_truth']}. right\n" in gpqa["prompt"][0]["content"]


def gpqa_rows(count: int) -> list[dict]:
    return [{**PUBLISHED["gpqa_diamond"][0], "Question": f"Question {number}?"} for number in range(count)]


def test_gpqa_order_depends_on_seed_and_question_alone() -> None:
    (_, read), *_ = benchmarks.READERS["gpqa_diamond"]
    items = [read(row, 0) for row in gpqa_rows(60)]
    assert [read(row, 0) for row in gpqa_rows(60)] == items
    assert all(item.choices[int(item.answer)] == "right" and sorted(item.choices)[1:] for item in items)
    assert {item.answer for item in items} == {0, 1, 2, 3}  # 60 draws miss one of four places with probability 4 * 0.75**60 < 1e-6
    assert [read(row, 1).answer for row in gpqa_rows(60)] != [item.answer for item in items]


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("olympiad", {"final_answer": []}, "no_ground_truth"),
        ("olympiad", {"final_answer": None}, "no_ground_truth"),
        ("olympiad", {"final_answer": [3]}, "malformed"),
        ("arc_c", {"answerKey": "4"}, "malformed"),
        ("arc_c", {"choices": {"text": ["a"], "label": ["A", "B"]}}, "malformed"),
        ("arc_c", {"choices": None}, "malformed"),
        ("gpqa_diamond", {"Incorrect Answer 2": None}, "malformed"),
        ("mmlu_pro", {"answer": "A"}, "malformed"),
        ("mmlu_pro", {"answer_index": 3}, "malformed"),
        ("amc", {"answer": None}, "no_ground_truth"),
        ("minerva", {"question": " "}, "malformed"),
    ],
)
def test_benchmark_rows_at_fault(name: str, changes: dict, reason: str) -> None:
    (_, read), *_ = benchmarks.READERS[name]
    with pytest.raises(RowFault) as raised:
        read({**PUBLISHED[name][0], **changes}, 0)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sets": ["aime23"]}, "prepare.task.sets: 'aime23' is unknown"),
        ({"sets": []}, "prepare.task.sets"),
        ({"sets": "aime24"}, "give a list"),
        ({"choice_template": "{question}"}, "choice_template"),
        ({"choice_template": None}, "choice_template"),
    ],
)
def test_benchmark_settings_at_fault(settings_of: Callable, tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PREPARERS["benchmarks"](tmp_path, {**settings_of("benchmarks"), "sets": ["aime24"], **changes})
