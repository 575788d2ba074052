"""One function makes text fit for people: whatever goes in, nothing that comes out acts, and letters of all scripts stay."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile import HOSTILE, acting
from unify_posttrain.text import lines_of, one_line, visible, with_margin

ANYTHING = st.text(st.characters(codec=None, exclude_categories=())) | st.text(st.sampled_from(HOSTILE + "ab\n\t"))


@given(ANYTHING)
def test_nothing_acts_and_nothing_is_lost(text: str) -> None:
    assert acting(one_line(text), allowed="") == set() and len(one_line(text)) >= len(text)
    assert acting(visible(text)) == set() and visible(text).count("\n") == text.count("\n")
    assert one_line(one_line(text)) == one_line(text)
    assert lines_of([text, text]).count("\n") == 2
    assert all(line.startswith("    ") for line in with_margin(text).split("\n")[1:])


@pytest.mark.parametrize(
    "text", ["plain", "π·Â ≤ 1 “quoted” – dash…", "中文 日本語 한국어 עברית العربية हिन्दी", "🙂 ∫ ┏━┓", "\\x1b"]
)
def test_honest_text_stays(text: str) -> None:
    assert one_line(text) == visible(text) == text.replace("\u200d", "\\u200d")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\x1b[31mb", "a\\x1b[31mb"),
        ("10 %\r99 %", "10 %\\r99 %"),
        ("a\x7f\x9b", "a\\x7f\\x9b"),
        ("user\u202e\u2066", "user\\u202e\\u2066"),
        ("zero\u200bwidth\ufeff", "zero\\u200bwidth\\ufeff"),
        ("tag\U000e0041", "tag\\U000e0041"),
        ("half\ud800", "half\\ud800"),
        ("filler\u3164", "filler\\u3164"),
        ("a\nb\tc\u2028d", "a\\nb\\tc\\u2028d"),
        (7, "7"),
    ],
)
def test_what_acts_is_shown_by_its_number(text: object, said: str) -> None:
    assert one_line(text) == said
