"""System prompts and templates, and the values that a row may hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.preparation import rows
from unify_posttrain.preparation.prompts import PromptStyle, fill
from unify_posttrain.preparation.rows import RowFault

USER = {"role": "user", "content": "Q"}
OWN = {"role": "system", "content": "own"}


@pytest.mark.parametrize(
    ("style", "without", "with_own"),
    [
        (PromptStyle(None, False, None), [USER], [OWN, USER]),
        (PromptStyle("", False, None), [USER], [USER]),
        (PromptStyle("S", True, None), [{"role": "system", "content": "S"}, USER], [OWN, USER]),
        (PromptStyle("S", False, None), [{"role": "system", "content": "S"}, USER], [{"role": "system", "content": "S"}, USER]),
        (PromptStyle(None, False, "<{question}>"), [{**USER, "content": "<Q>"}], [OWN, {**USER, "content": "<Q>"}]),
    ],
)
def test_styles(style: PromptStyle, without: list, with_own: list) -> None:
    assert style.apply([USER]) == without and style.apply([OWN, USER]) == with_own
    assert USER["content"] == "Q"  # the input is left alone


def test_the_template_goes_to_the_last_question() -> None:
    turns = [USER, {"role": "assistant", "content": "A"}, {**USER, "content": "R"}]
    assert [turn["content"] for turn in PromptStyle(None, False, "{question}!").apply(turns)] == ["Q", "A", "R!"]


@given(st.text(), st.text())
def test_braces_in_questions_are_no_places(question: str, choices: str) -> None:
    filled = fill("{question}|{choices}|{other}|\\boxed{}", question=question, choices=choices)
    assert filled == f"{question}|{choices}|{{other}}|\\boxed{{}}"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("  x ", "x"),
        (3, "3"),
        (142.0, "142"),
        (0.25, "0.25"),
        (["a"], "a"),
        (["a", "b"], '["a", "b"]'),
        ({"target": 5, "numbers": [1]}, '{"target": 5, "numbers": [1]}'),
    ],
)
def test_ground_truths_become_text(value: Any, expected: str) -> None:
    assert rows.ground_truth(value, "a") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no_ground_truth"),
        ("", "no_ground_truth"),
        ([], "no_ground_truth"),
        ({}, "no_ground_truth"),
        ([None], "no_ground_truth"),
        (float("nan"), "no_ground_truth"),
        (float("inf"), "malformed"),
        (True, "malformed"),
        (b"x", "malformed"),
    ],
)
def test_what_is_no_ground_truth(value: Any, reason: str) -> None:
    with pytest.raises(RowFault) as raised:
        rows.ground_truth(value, "a")
    assert raised.value.reason == reason and "'a'" in str(raised.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, ()),
        ("", ()),
        ([], ()),
        ("text", ("text",)),
        ([{"role": "assistant", "content": "text"}], ("text",)),
        ('[{"role": "assistant", "content": "text"}]', ("text",)),
        ("[{not JSON", ("[{not JSON",)),
        ('[{"x": 1}]', ('[{"x": 1}]',)),
        (["a", None, "b", "a", " "], ("a", "b")),
    ],
)
def test_targets(value: Any, expected: tuple) -> None:
    assert rows.targets(value, "t") == expected


@pytest.mark.parametrize(
    "value",
    [
        3,
        {"role": "assistant", "content": "x"},
        [{"role": "user", "content": "x"}],
        [{"role": "assistant", "content": "x"}] * 2,
        [{"role": "assistant", "content": [{"type": "text", "text": "x"}]}],
        ["a", 3],
    ],
)
def test_targets_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(RowFault) as raised:
        rows.targets(value, "t")
    assert raised.value.reason == "malformed"


@pytest.mark.parametrize(
    "value",
    [
        None,
        "",
        [],
        3,
        ["text"],
        [{"role": "user"}],
        [{"role": "human", "content": "x"}],
        [{"role": "user", "content": "\n"}],
        [{"role": "system", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
    ],
)
def test_prompts_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(RowFault) as raised:
        rows.messages(value, "p")
    assert raised.value.reason == "malformed"


def test_paths_into_nested_values() -> None:
    row = {"a.b": 1, "a": {"c": [{"d": 2}], "e": None}}
    assert rows.value_at(row, "a.b") == 1  # a column with a dot in its name comes first
    assert rows.value_at(row, "a.c.0.d") == 2
    assert rows.value_at(row, "a.c.1.d") is None and rows.value_at(row, "a.e.f") is None and rows.value_at(row, "z") is None
    with pytest.raises(RowFault, match="'d' leads into"):
        rows.value_at({"a": "text"}, "a.d")
