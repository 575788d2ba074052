r"""What must hold for any answers: equality is reflexive and symmetric, blind to layout, and not blind to what an answer says."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.rewards.answer_pairs import ALL
from unify_posttrain.rewards.answers.comparison import same
from unify_posttrain.rewards.answers.reader import read
from unify_posttrain.rewards.equality import equal_answers

LETTERS = st.sampled_from(["x", "y", "z", "a", "b", "n", "R", "r", "x_1", "x_2", "v_{max}", r"\alpha", r"\theta", "y'", r"\bar{z}"])
FRACTIONS = st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}")
NUMBERS = st.one_of(st.integers(1, 9999).map(str), st.decimals(0, 99, places=2).map(str), FRACTIONS)


def combined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions of expressions."""
    return st.one_of(
        st.tuples(parts, st.sampled_from([" + ", " - ", r" \cdot "]), parts).map(lambda three: "({}{}{})".format(*three)),
        st.tuples(parts, parts).map(lambda two: r"\frac{{{}}}{{{}}}".format(*two)),
        st.tuples(parts, st.integers(2, 4)).map(lambda two: "({})^{{{}}}".format(*two)),
        parts.map(lambda part: rf"\sqrt{{{part}}}"),
        parts.map(lambda part: rf"\sin({part})"),
        parts.map(lambda part: f"-{part}"),
    )


EXPRESSIONS = st.recursive(st.one_of(LETTERS, NUMBERS), combined, max_leaves=6)
ANSWERS = st.one_of(
    EXPRESSIONS,
    st.lists(EXPRESSIONS, min_size=2, max_size=4).map(", ".join),
    st.lists(EXPRESSIONS, min_size=2, max_size=4).map(lambda items: rf"\left({', '.join(items)}\right)"),
    st.lists(EXPRESSIONS, min_size=1, max_size=4).map(lambda items: rf"\{{{', '.join(items)}\}}"),
    st.tuples(LETTERS, EXPRESSIONS).map(lambda two: "{} = {}".format(*two)),
    st.tuples(LETTERS, st.sampled_from(["<", r"\le", ">", r"\ge"]), NUMBERS).map(" ".join),
)
TEXTS = st.text(alphabet="\\frac{}sqrtext $,;.()[]|0123456789 abxXyRi+-=^_%<>'!:\n", max_size=60)


def verdict(left: str, right: str) -> bool | None:
    return same(read(left), read(right))


@given(ANSWERS)
@settings(max_examples=150, deadline=None)
def test_reflexive_whatever_is_written(text: str) -> None:
    assert verdict(text, text) is True


@given(ANSWERS, ANSWERS)
@settings(max_examples=150, deadline=None)
def test_symmetric(left: str, right: str) -> None:
    assert verdict(left, right) is verdict(right, left)


@given(TEXTS, TEXTS)
@settings(max_examples=400, deadline=None)
def test_no_text_raises_or_hangs(left: str, right: str) -> None:
    assert verdict(left, right) is verdict(right, left)
    assert verdict(left, left) in (True, None, False)


@given(ANSWERS)
@settings(max_examples=150, deadline=None)
def test_blind_to_layout(text: str) -> None:
    wide = re.sub(r"(?<=[+\-=,])", r" \\; ", text)
    for other in (
        rf"\displaystyle {text}",
        text.replace("(", r"\left(").replace(")", r"\right)").replace(r"\left\left", r"\left").replace(r"\right\right", r"\right"),
        text.replace(r"\frac", r"\dfrac"),
        f"$ {text} $",
        f"{text}.",
        wide,
        rf"\textcolor{{red}}{{{text}}}" if "," not in text else text,
    ):
        assert verdict(text, other) is True, other


@given(EXPRESSIONS, EXPRESSIONS, EXPRESSIONS)
@settings(max_examples=100, deadline=None)
def test_order_of_a_sum_and_of_a_product(a: str, b: str, c: str) -> None:
    assert verdict(f"({a}) + ({b}) - ({c})", f"-({c}) + ({b}) + ({a})") is not False
    assert verdict(f"({a})({b})({c})", rf"({c}) \cdot ({a}) \cdot ({b})") is not False


@given(st.lists(st.integers(-999, 999), min_size=2, max_size=5, unique=True), st.randoms(use_true_random=False))
@settings(max_examples=100, deadline=None)
def test_order_of_a_tuple_and_of_a_set(numbers: list[int], draw: random.Random) -> None:
    shuffled = numbers[:]
    draw.shuffle(shuffled)
    first, second = (", ".join(map(str, each)) for each in (numbers, shuffled))
    assert verdict(f"({first})", f"({second})") is (numbers == shuffled)
    assert verdict(rf"\{{{first}\}}", rf"\{{{second}\}}") is True
    assert verdict(first, second) is True


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=4, unique=True), st.data())
@settings(max_examples=100, deadline=None)
def test_values_of_a_system_do_not_swap(values: list[int], data: st.DataObject) -> None:
    names = ["x", "y", "z", "w"][: len(values)]
    swapped = data.draw(st.permutations(values))
    first, second = (", ".join(f"{name}={value}" for name, value in zip(names, each, strict=True)) for each in (values, swapped))
    assert verdict(first, second) is (swapped == values)
    assert verdict(first, f"({', '.join(map(str, values))})") is True


@given(
    EXPRESSIONS.filter(lambda text: any(character.isdigit() for character in re.sub(r"_\{?\w+\}?|\^\{\d\}", "", text))), st.data()
)
@settings(max_examples=200, deadline=None)
def test_a_changed_digit_is_never_accepted_unless_it_says_the_same(text: str, data: st.DataObject) -> None:
    """Held against the values at a point that the comparison does not use."""
    places = [match.start() for match in re.finditer(r"\d", text)]
    place = data.draw(st.sampled_from(places))
    digit = data.draw(st.sampled_from([d for d in "0123456789" if d != text[place]]))
    changed = text[:place] + digit + text[place + 1 :]
    if verdict(text, changed) is True:
        assume(verdict(rf"({text}) - ({changed})", "0") is not True)
        assert verdict(rf"({text}) + q", rf"({changed}) + q") is True


@pytest.mark.parametrize(
    ("left", "right"), [("R-r", "r-R"), ("2X", "2x"), ("x_1", "x_2"), ("x'", "x"), ("v_{max}", "v_{Max}"), (r"\bar{z}", "z")]
)
def test_names_keep_what_tells_them_apart(left: str, right: str) -> None:
    for form in ("{}", "{}+1", r"\frac{{{}}}{{2}}", r"\sqrt{{{}}}", "({}, 1)", r"\{{{}\}}", "y = {}"):
        assert verdict(form.format(left), form.format(right)) is False


def test_the_argued_pairs_are_symmetric_and_reflexive() -> None:
    wrong = [pair for _, answer, gold, _ in ALL for pair in [(answer, gold)] if verdict(*pair) is not verdict(*pair[::-1])]
    assert not wrong
    assert not [gold for *_, gold, _ in ALL if gold.strip() and not equal_answers(gold, gold)]
