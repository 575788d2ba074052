"""Extraction, normal forms and equality: the table of argued pairs, and what no text may do."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.rewards.answer_pairs import ALL, PAIRS, RIGHT
from unify_posttrain.rewards import extraction
from unify_posttrain.rewards.answers.reader import read
from unify_posttrain.rewards.answers.spelling import spelled
from unify_posttrain.rewards.pool import KillablePool


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{1} and \boxed{2}", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{x \mid x>0\right\}}", r"\left\{x \mid x>0\right\}"),
        (r"\boxed{8} and then \boxed{\frac{1}{", "8"),  # the last one was cut off
        (r"} \boxed{3}", "3"),
        (r"\fbox{5}", None),
        (r"\boxed{", None),
        (r"\boxed 5", "5"),
        (r"$\boxed5$.", "5"),
        (r"\boxed -1.5.", "-1.5"),
        (r"\boxed B.", "B"),
        (r"\boxed to answer", None),
        (r"\boxed{}", ""),
        (r"\boxed{5}. I put it in \boxed{}.", "5"),
        (r"\boxed{5} (as asked, in \boxed{...})", "5"),
        (r"\boxed{5} in \boxed{\text{your answer here}}", "5"),
        ("", None),
    ],
)
def test_last_boxed(text: str, answer: str | None) -> None:
    assert extraction.last_boxed(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"<answer>1</answer> \boxed{2} <answer>3</answer>", "2"),  # a box before a tag, whatever their order
        ("<answer> 3 </answer>\nthe end", "3"),
        ("<answer>1</answer><answer>2</answer>", "2"),
        ("</answer>\n4", "4"),
        ("so\n\nThe answer is 5.\n\n", "5"),
        ("Therefore, the final answer is: 6", "6"),
        ("7", "7"),
        (r"\boxed{}" + "\n8", "8"),  # an empty box says nothing
        (" \n ", None),
    ],
)
def test_extract_answer(text: str, answer: str | None) -> None:
    assert extraction.extract_answer(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Answer: 34", "34"),
        ("answer : 1\nmore\nANSWER:2", "2"),
        ("Answer: 3\n", "3"),
        ("Answer: A: Answer: 4", "4"),
        ("Answer:\n5", None),
        ("no such line", None),
        ("preanswer: 9", None),
    ],
)
def test_answer_line(text: str, answer: str | None) -> None:
    assert extraction.answer_line(text) == answer


def test_thinking_is_cut_at_its_ends() -> None:
    text = "a</think>b</think>c"
    assert extraction.after_first_think(text) == "b</think>c"
    assert extraction.between_thinks(text) == "b"
    assert extraction.after_last_think(text) == "c"
    assert [cut("none") for cut in (extraction.after_first_think, extraction.between_thinks, extraction.after_last_think)] == [
        None
    ] * 3


@pytest.mark.parametrize(
    "piece", [r"\boxed{", "{", "}", "\\", "<answer>", "</answer>", "answer ", "Answer:", " ", "so ", r"\text{", "$", ","]
)
@pytest.mark.parametrize("function", [extraction.extract_answer, extraction.last_boxed, extraction.answer_line, spelled])
def test_linear_in_any_text(function: Callable[[str], object], piece: str) -> None:
    """Ten times the text, about ten times the time: quadratic growth would be a hundred times. The floor is the clock's."""
    small, large = piece * 20_000, piece * 200_000
    started = time.process_time()
    function(small)
    between = time.process_time()
    function(large)
    assert time.process_time() - between < 40 * max(between - started, 0.01)


@given(st.text(alphabet="\\boxed{}frac text$,;.()[]0123456789 abx+-=^_%", max_size=200))
@settings(max_examples=300)
def test_no_text_raises(text: str) -> None:
    extraction.extract_answer(text)
    assert isinstance(spelled(text), str)


@given(st.text(alphabet="\\frac{}1234,. x+/%$cm", max_size=30))
@settings(max_examples=300)
def test_one_spelling_is_its_own(text: str) -> None:
    """Numbers, once spelled, stay what they are, for a majority vote counts spellings."""
    once = spelled(text)
    if once.lstrip("-").replace("/", "", 1).isdigit():
        assert spelled(once) == once
    assert read(text) == read(text)


def test_the_table_is_large_and_has_both_verdicts() -> None:
    assert len(ALL) >= 300
    assert len({(answer, gold) for _, answer, gold, _ in ALL}) == len(ALL)
    for pairs in PAIRS.values():
        assert 0.2 < sum(verdict is RIGHT for *_, verdict in pairs) / len(pairs) < 0.8 or len(pairs) > 20


def test_the_argued_verdicts() -> None:
    with KillablePool("unify_posttrain.rewards.grading:compare_item", workers=2, timeout_seconds=30.0, memory_mb=2048) as pool:
        outcomes = pool.map([{"answer": answer, "gold": gold} for _, answer, gold, _ in ALL])
    wrong = [
        f"{group}: {answer[:40]!r} against {gold!r} should be {verdict}, is {outcome.value} {outcome.fault or ''}"
        for (group, answer, gold, verdict), outcome in zip(ALL, outcomes, strict=True)
        if outcome.value is not verdict
    ]
    assert not wrong, "\n".join(wrong)
