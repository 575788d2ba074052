r"""The parts of the answer reader, each with its table of examples."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest

from unify_posttrain.rewards.answers import units
from unify_posttrain.rewards.answers.algebra import same_expression
from unify_posttrain.rewards.answers.cleaning import clean
from unify_posttrain.rewards.answers.evaluation import OutsideError, TooLargeError, UndefinedError, UnknownError, evaluate
from unify_posttrain.rewards.answers.expressions import parse
from unify_posttrain.rewards.answers.nodes import Node, described
from unify_posttrain.rewards.answers.numerals import clock, grouped, numeral
from unify_posttrain.rewards.answers.reader import read
from unify_posttrain.rewards.answers.regions import complement, intersection, same_region, union
from unify_posttrain.rewards.answers.spelling import spelled
from unify_posttrain.rewards.answers.tokens import Token, UnreadError, joined, lex
from unify_posttrain.rewards.answers.values import Choice, Clock, Figure, Items, Named, Numeral, Ratio, Region, Relation, Words
from unify_posttrain.rewards.answers.words import is_word

ONE = Fraction(1)


def expression(text: str) -> Node:
    return parse(lex(clean(text)))


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        (r"\left(\dfrac12,\; 3\right).", "(\\frac12, 3)"),
        ("10 − 2√5", r"10 - 2\sqrt{5}"),
        ("¾", r"\frac{3}{4}"),
        ("2⁻¹", "2^{-1}"),
        ("x₁", "x_{1}"),
        ("１２", "12"),
        (r"\$15{,}600.00", r"\$15,600.00"),
        ("$12$", "12"),
        ("$5", r"\$5"),
        ("**12**", "12"),
        ("2**5", "2^5"),
        (r"\textcolor{blue}{12}", "12"),
        (r"\color{red}{12}", "12"),
        ("12\\\\", "12"),
        (r"\frac{1}{2}\text{.}", r"\frac{1}{2}"),
        ("5...", "5"),
        (r"0.333\ldots", r"0.333\ldots"),
        (r"1:4:9:\ldots", r"1:4:9:\ldots"),
        ("\u200b12\ufeff", "12"),
        ('"42"', "42"),
        ("]2,5[", "(2,5)"),
        ("6.7 x 10^-4", r"6.7\cdot 10^-4"),
        ("3 4", "3 4"),
        (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
    ],
)
def test_layout_goes_and_meaning_stays(text: str, cleaned: str) -> None:
    assert " ".join(clean(text).split()) == cleaned


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("1/2x", ("multiply", ("divide", ONE, Fraction(2)), "x")),
        (r"\frac12x", ("multiply", ("divide", ONE, Fraction(2)), "x")),
        ("-2^2", ("negate", ("power", Fraction(2), Fraction(2)))),
        ("2^10", ("power", Fraction(2), Fraction(10))),
        ("10^-3", ("power", Fraction(10), ("negate", Fraction(3)))),
        ("2^3^2", ("power", Fraction(2), ("power", Fraction(3), Fraction(2)))),
        (r"\sin x\cos y", ("multiply", ("sin", "x"), ("cos", "y"))),
        (r"\sin(x\cos y)", ("sin", ("multiply", "x", ("cos", "y")))),
        (r"\log_2 8", ("log", Fraction(8), Fraction(2))),
        (r"\sin^{-1} x", ("arcsin", "x")),
        ("3 1/2", ("add", Fraction(3), ("divide", ONE, Fraction(2)))),
        (r"3\frac12", ("add", Fraction(3), ("divide", ONE, Fraction(2)))),
        ("x(x-1)", ("multiply", "x", ("add", "x", ("negate", ONE)))),
        ("f(x)", ("f", "x")),
        ("f'(x)", ("f'", "x")),
        ("x_{max}", "x_max"),
        (r"x_{\text{max}}", "x_max"),
        ("x_1'", "x_1'"),
        (r"\overline{z}", r"\overline{z}"),
        ("CAB", "CAB"),
        ("abc", ("multiply", ("multiply", "a", "b"), "c")),
        (r"0.1\overline{6}", Fraction(1, 6)),
        ("0.(3)", Fraction(1, 3)),
        (r"0.1212\ldots", Fraction(4, 33)),
        (r"{5\choose2}", ("binom", Fraction(5), Fraction(2))),
        ("(2n)!!", ("factorial2", ("multiply", Fraction(2), "n"))),
        (r"\sum_{k=1}^n k", ("k", ONE, "n", "k")),
        (r"|x-|y||", ("abs", ("add", "x", ("negate", ("abs", "y"))))),
        (r"x^*", ("*", "x")),
        ("A^T", ("\\top", "A")),
        ("x^T", ("power", "x", "T")),
    ],
)
def test_expressions(text: str, tree: Any) -> None:
    assert described(expression(text)) == tree


@pytest.mark.parametrize(
    "text", ["", "3 4", "x+", "(x", r"\frac{1}", r"\int_0^1 x dx", "=", "x,y", "{" * 50 + "x" + "}" * 50, "9" * 500, "1e9999"]
)
def test_what_is_no_expression(text: str) -> None:
    with pytest.raises(UnreadError):
        expression(text)


@pytest.mark.parametrize(
    ("text", "point", "value"),
    [
        (r"\frac{x}{3}+1", {"x": Fraction(1, 2)}, Fraction(7, 6)),
        (r"\sqrt[3]{-8}", {}, Fraction(-2)),
        ("(-8)^{1/3}", {}, Fraction(-2)),
        (r"\sqrt{\frac{4}{9}}", {}, Fraction(2, 3)),
        ("2^{1000}", {}, Fraction(2**1000)),
        (r"\binom{10}{3}", {}, Fraction(120)),
        ("7!!", {}, Fraction(105)),
        (r"\lfloor -3.2 \rfloor", {}, Fraction(-4)),
        (r"\lfloor \sqrt{2} \cdot \sqrt{2} \rfloor", {}, Fraction(2)),
        (r"\log_2 8", {}, Fraction(3)),
        (r"\sum_{i=1}^{10} i^2", {}, Fraction(385)),
        (r"\gcd(12, 18)", {}, Fraction(6)),
    ],
)
def test_values_are_exact_where_they_can_be(text: str, point: dict[str, Fraction], value: Fraction) -> None:
    assert evaluate(expression(text), point) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (r"\frac{1}{x-x}", UndefinedError),
        (r"\ln 0", UndefinedError),
        (r"\tan\frac{\pi}{2}", UndefinedError),
        (r"\sqrt{x-3}", OutsideError),
        (r"\ln(-x)", OutsideError),
        ("9^{9^{9^9}}", TooLargeError),
        (r"\sum_{k=1}^{10^9} k", TooLargeError),
        (r"\sum_{k=1}^{\infty} 2^{-k}", UnknownError),
        (r"\infty", UnknownError),
    ],
)
def test_values_that_are_none(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        evaluate(expression(text), {"x": Fraction(1)})


def test_a_difference_that_may_be_an_error_of_rounding_is_no_proof() -> None:
    assert same_expression(expression(r"\sqrt{2}"), expression(r"\sqrt{2}+10^{-30}")) is None
    assert same_expression(expression(r"\sqrt{2}"), expression(r"\sqrt{2}+10^{-12}")) is False
    assert same_expression(expression("2^{1000}"), expression("2^{1000}+1")) is False


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("cm", "cm"), ("centimeters", "cm"), ("cubic centimeters", "cm3"), ("cm^3", "cm3"), ("cm^{3}", "cm3"),
        ("square units", "unit2"),
        ("units^2", "unit2"), ("km/hr", "km/h"), ("m s^{-1}", "m/s"), ("meters per second", "m/s"), ("m/s^2", "m/s2"),
        ("apples", "apple"),
        ("feet squared", "ft2"), ("x+1", None), ("", None),
    ],
)  # fmt: skip
def test_units(text: str, name: str | None) -> None:
    assert units.name(text) == name


@pytest.mark.parametrize(
    ("text", "groups", "doubtful"),
    [
        ("1,234,567", ["1234567"], True),
        ("12 345", ["12345"], False),
        ("1,234.5", ["1234.5"], True),
        ("1, 234", ["1", ",", "234"], False),
        ("1,23", ["1", ",", "23"], False),
        ("12 34", ["12", "34"], False),
        ("0,123", ["0", ",", "123"], False),
        ("1,234,56", ["1", ",", "234", ",", "56"], False),
        ("12,34,567", ["12", ",", "34", ",", "567"], False),
        ("1,000, 2,000", ["1000", ",", "2000"], True),
        ("(1,234)", ["(", "1", ",", "234", ")"], False),
    ],
)
def test_groups_of_digits(text: str, groups: list[str], doubtful: bool) -> None:
    tokens, sure = grouped(lex(text))
    assert ([token.text for token in tokens], sure) == (groups, doubtful)


def test_numerals_and_times() -> None:
    assert numeral(lex("2516_7")) == numeral(lex(r"2516_{\text{seven}}")) == Numeral("2516", 7)
    assert numeral(lex("1A_{16}")) == Numeral("1A", 16)
    assert numeral(lex("x_1")) is None and numeral(lex("2516")) is None
    assert clock(lex("2:05 p.m.")) == Clock(2, 5, "pm")
    assert clock(lex("3:4")) is None and clock(lex("25:10")) is None and clock(lex("4:75")) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (r"(\frac12,3)", Items), (r"\{1,2\}", Items), ("x=1, y=2", Items), ("12 and 13", Items), ("x>3", Region),
        (r"k > e", Region),
        (r"(-\infty,3]", Region), ("|x|<3", Region), ("x^2 \\le 4", Region), (r"\{x \mid x>3\}", Region),
        (r"x \ne 0", Region), ("a<b<c", Relation),
        ("2x+4y=3", Relation), ("x=5", Named), ("11:30", Clock), ("3:4", Ratio), ("(B) 12", Choice), ("Monday", Words),
        ("June 20", Words),
        (r"\angle ABC", Figure), ("2516_8", Numeral),
    ],
)  # fmt: skip
def test_types(text: str, kind: type) -> None:
    assert type(read(text)) is kind


def test_sets_of_numbers() -> None:
    sets = {name: read(text) for name, text in {"a": "(0,2]", "b": "[1,3)", "low": "x \\le 1", "all": r"\mathbb{R}"}.items()}
    a, b = (union(read(f"x\\in{text}").value, Region(())) for text in ("(0,2]", "[1,3)"))  # type: ignore[union-attr]
    assert same_region(union(a, b), read("0<x<3")) is True
    assert same_region(intersection(a, b), read(r"1\le x\le 2")) is True
    assert same_region(complement(a), read(r"x\le 0 \text{ or } x>2")) is True
    assert same_region(complement(complement(a)), a) is True
    assert same_region(complement(sets["all"]), Region(())) is True  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "one"),
    [
        (r"\frac{4}{8}", "1/2"), ("0.50", "1/2"), ("x = 5", "5"), ("1,234", "1234"), (r"5\text{ cm}", "5cm"),
        ("No  Solution", "no solution"),
        ("(B) 12", "B"), (r"\left( \dfrac12, 3 \right).", r"(\frac12,3)"), ("2 \\pi r", r"2\pi r"), ("", ""), ("$$", ""),
        (r"\boxed{}", ""),
    ],
)  # fmt: skip
def test_one_spelling(text: str, one: str) -> None:
    assert spelled(text) == one


def test_blanks_only_where_they_separate() -> None:
    assert joined(lex(r"\pi  r + 3 4")) == r"\pi r+3 4"
    assert lex("3 4") == [Token("number", "3"), Token("number", "4", True)]
    assert is_word("CAB") and is_word("listen") and not is_word("ab") and not is_word("x_A") and not is_word("sin")
