"""Determinants and ranks: exact values, answers, rows."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tasks.environments import node, row_of, task_settings
from unify_posttrain.tasks.environment import compute_score, make_environment
from unify_posttrain.tasks.matrices import determinant, rank, read_answer
from unify_posttrain.tasks.matrix_rows import SCHEMA, Settings, build_rows, write_splits

DET = [[3, -1], [2, 4]]


def matrices(rows: int, columns: int) -> st.SearchStrategy[list[list[int]]]:
    row = st.lists(st.integers(-4, 4), min_size=columns, max_size=columns)
    return st.lists(row, min_size=rows, max_size=rows)


@pytest.mark.parametrize(
    ("matrix", "value"),
    [(DET, 14), ([[0, 2], [2, 0]], -4), ([[2, -1, 0], [3, 4, 5], [-2, 1, 1]], 11), ([[5, 5, 5], [1, 2, 3], [-4, 0, 4]], 0)],
)
def test_determinants(matrix: list[list[int]], value: int) -> None:
    assert determinant(matrix) == value


def test_ranks() -> None:
    assert rank([[1, 2, 3, 4, 0], [2, 4, 6, 8, 0], [0, 0, 0, 0, 1], [1, 2, 3, 4, 1]]) == 2 and rank([[0] * 5] * 4) == 0


@given(matrices(3, 3), matrices(4, 5))
def test_against_numpy(square: list[list[int]], wide: list[list[int]]) -> None:
    assert determinant(square) == round(float(np.linalg.det(square)))
    assert rank(wide) == np.linalg.matrix_rank(wide)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"answer": 14}', 14), ('{"answer": 14,}', 14), ('so "answer": 3, no, "answer": -14', -14), ("14", None),
        ('{"answer": "14"}', None), ('{"answer": 14.0}', None), ('{"answer": 14.0,}', None), ('{"answer": true}', None),
        ('{"answer": 1e1,}', None), ('{"answer": "14",}', None), ("", None), ("[14]", None), ('{"a": 1}', None),
    ],
)  # fmt: skip
def test_reading(text: str, answer: int | None) -> None:
    assert read_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "score", "outcome"),
    [('{"answer": 14}', 5, "right_answer"), ('{"answer": 13}', -1, "wrong_answer"), ("14", -1, "no_answer")],
)
def test_rewards(text: str, score: float, outcome: str) -> None:
    truth = json.dumps({"question": "det", "matrix": DET})
    found = compute_score("det_id", text, truth, environment=node("matrices", score="sum", limit_penalty=0))
    assert (found["score"], found[f"outcome_{outcome}"]) == (score, 1)


def test_a_rank_has_one_turn_and_a_determinant_five() -> None:
    environment = make_environment(node("matrices"))
    for question, turns in (("rank", 1), ("det", 5)):
        environment.reset(row_of({"question": question, "matrix": DET}))
        steps = [environment.step('{"answer": 0}', True) for _ in range(turns)]
        assert [step.done for step in steps] == [False] * (turns - 1) + [True] and steps[-1].reward == -2


def small(**changes: Any) -> Settings:
    given = task_settings("matrices")
    given["rows"] = {"train_det": 200, "train_rank": 50, "det_id": 40, "det_ood": 40, "rank_id": 25, "rank_ood": 25}
    return Settings.from_node({**given, **changes})


def test_rows() -> None:
    rows = build_rows(small())
    counts = Counter(row["data_source"] for row in rows)
    assert counts == {"det_train": 200, "rank_train": 50, "det_id": 40, "det_ood": 40, "rank_id": 25, "rank_ood": 25}
    found: dict[str, list[tuple[list[list[int]], dict[str, Any]]]] = {}
    for row in rows:
        truth = json.loads(row["reward_model"]["ground_truth"])
        found.setdefault(row["data_source"], []).append((truth["matrix"], row["extra_info"]))
    for matrix, info in found["det_train"] + found["det_id"] + found["det_ood"]:
        assert info["answer"] == determinant(matrix) != 0
    assert {np.shape(m) for m, _ in found["det_id"]} == {(2, 2)} and {np.shape(m) for m, _ in found["det_ood"]} == {(3, 3)}
    assert sum(info["symmetric"] for _, info in found["det_ood"]) >= 20  # every other one by construction
    assert {np.shape(m) for m, _ in found["rank_id"]} == {(4, 5)} and {np.shape(m) for m, _ in found["rank_ood"]} == {(5, 4)}
    assert Counter(info["answer"] for _, info in found["rank_ood"]) == dict.fromkeys(range(5), 5)
    keys = {split: {json.dumps(m) for source in sources for m, _ in found[source] if np.any(m)}
            for split, sources in (("train", ("det_train", "rank_train")), ("test", ("det_id", "rank_id")))}  # fmt: skip
    assert not keys["train"] & keys["test"]
    assert build_rows(small()) == rows != build_rows(small(seed=1))


def test_files(tmp_path: Path) -> None:
    settings = task_settings("matrices")
    settings["rows"] = dict.fromkeys(settings["rows"], 5)
    paths = write_splits(tmp_path, settings)
    assert pq.read_schema(paths["train"]).equals(SCHEMA) and pq.read_table(paths["test"]).num_rows == 20


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"entries": {"det_id": 4}}, r"prepare.task.entries=.*give exactly det_id, det_ood"),
        ({"entries": {"det_id": 0, "det_ood": 5}}, r"prepare.task.entries.det_id=0: give an integer of at least 1"),
        ({"factor_entries": 0}, r"prepare.task.factor_entries=0"),
        ({"rows": {"train_det": 1}}, r"prepare.task.rows=.*give exactly train_det, train_rank, det_id"),
        ({"seed": 0.5}, r"prepare.task.seed=0.5: give an integer"),
        ({"rows": {"train_det": 9000, "train_rank": 0, "det_id": 1, "det_ood": 0, "rank_id": 0, "rank_ood": 0}},
         r"prepare.task.rows.train_det=9000: no further matrices are found; ask for fewer"),
        ({"rows": dict.fromkeys(task_settings("matrices")["rows"], 0)}, "at least one row each"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rows(small(**changes))


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({"question": "trace", "matrix": DET}, r"question='trace' is unknown; choose one of det, rank"),
        ({"question": "det", "matrix": [[1, 2, 3], [4, 5, 6]]}, r"a matrix of 2x3 has no determinant"),
        ({"question": "rank", "matrix": [[1, 2], [3]]}, r"equally long rows, 12 at most"),
        ({"question": "rank", "matrix": []}, r"equally long rows"),
        ({"question": "rank", "matrix": [[1] * 13]}, r"equally long rows, 12 at most"),
        ({"question": "rank", "matrix": [[1.5]]}, r"something else than whole numbers"),
    ],
)
def test_what_is_no_row(truth: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(node("matrices")).reset(row_of(truth))
