"""How answers are read, and what is said: vectors P, and texts that try to be something else."""

from __future__ import annotations

import inspect
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unify_posttrain.tasks.vrag import protocol
from unify_posttrain.tasks.vrag.protocol import ANSWER, CROP, INVALID, SEARCH, read_action, read_box


@pytest.mark.parametrize(
    ("text", "kind", "content"),
    [
        ("<think>look</think>\n<search> q1 </search>", SEARCH, "q1"),
        ("<think>maybe <answer>x</answer></think><search>a\nb</search>", SEARCH, "a\nb"),
        ("<search>a</search><answer>b</answer>", SEARCH, "a"),
        ("<answer> </answer>", INVALID, ""),
        ("<Search>q</Search>", INVALID, ""),
        ("<search>q", INVALID, ""),
        ("<think>open <search>q</search>", INVALID, ""),
        ("<bbox>[1, 2, 3]</bbox>", INVALID, ""),
        ("<search>q <answer>b</answer>", ANSWER, "b"),  # what is not complete is no action
        ("<answer> </answer><search>q</search>", INVALID, ""),  # the first one counts, and it is empty
        ("<think>a</think><think>b</think><answer>c</answer>", ANSWER, "c"),
        ("</think><answer>c</answer>", ANSWER, "c"),
        ("<sea<think>x</think>rch>q</search>", INVALID, ""),  # taking thoughts out makes no tag
        ("<region>[1, 2, 3, 4]</region>", INVALID, ""),
        ("", INVALID, ""),
    ],
)
def test_actions(text: str, kind: str, content: str) -> None:
    found = read_action(text, "bbox")
    assert (found.kind, found.text) == (kind, content)


def test_boxes() -> None:
    found = read_action("<bbox>[10, 20, 110.5, 220]</bbox>", "bbox")
    assert (found.kind, found.box) == (CROP, (10, 20, Fraction(221, 2), 220))
    assert read_action("<region>[1, 2, 3, 4]</region>", "region").box == (1, 2, 3, 4)
    assert read_box("[0.1, 0, 1, 1]") == (Fraction(1, 10), 0, 1, 1)  # as it is written, not as a float holds it
    hostile = ("[1,2,3,true]", "[1,2,3,NaN]", "[1,2,3,Infinity]", "[1,2,3,1e999]", '[1,2,3,"4"]', "[[1,2,3,4]]", "1,2,3,4")
    for text in (*hostile, "[1,2,3,4,5]", "{}", "[" * 100_000, f"[1,2,3,{'9' * 5000}]", "__import__('os')", "[1,2,3,4]x"):
        assert read_box(text) is None, text[:40]


def test_hostile_answers_are_read_at_once() -> None:
    """Each of these took minutes if every open tag were looked for again: the work must be linear, 10 tags in 4 MB."""
    for piece in ("<search>", "<think></think>", "<bbox><think>", "<answer>", "<"):
        assert read_action(piece * (4_000_000 // len(piece)), "bbox").kind == INVALID


@settings(max_examples=50)
@given(st.lists(st.sampled_from(["<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>", "q", " ", "<"])))
def test_nothing_inside_of_thoughts_is_an_action(pieces: list[str]) -> None:
    text = "".join(pieces)
    found = read_action(f"<think>{text.replace('</think>', '')}</think>", "bbox")
    assert found.kind == INVALID
    assert read_action(f"<think>{text.replace('</think>', '')}</think><answer>z</answer>", "bbox").text == "z"
    assert "</think>" in text or read_action(f"<think>{text}", "bbox").kind == INVALID


def test_no_message_of_ours_can_be_read_as_an_action() -> None:
    said = [protocol.NO_PAGE, protocol.NO_SEARCH, protocol.NO_IMAGE, protocol.no_action("bbox"), protocol.no_crop("too small")]
    names = {name for name, value in vars(protocol).items() if name.startswith("NO_") or name.startswith("no_")}
    assert len(said) == len(names), "a message that this test does not see"
    assert [text for text in said if "<" in text or ">" in text] == []
    assert inspect.signature(protocol.no_action).parameters.keys() == {"crop_tag"}


def test_the_question_explains_the_protocol() -> None:
    for tag in protocol.CROP_TAGS:
        text = protocol.question_text("How much?", tag, 4)
        assert text.splitlines()[-1] == "Question: How much?"
        for name in ("think", "search", tag, "answer"):
            assert f"<{name}>" in text and f"</{name}>" in text
