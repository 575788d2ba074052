"""Plain arithmetic is read as sympy's parser reads it, and nothing of it is evaluated."""

from __future__ import annotations

import pytest
import sympy
from math_verify import parser
from sympy.parsing.sympy_parser import parse_expr

from unify_posttrain.rewards import equality
from unify_posttrain.rewards.plain import MAX_CHARACTERS, arithmetic

EXPRESSIONS = ["7", "0.5", ".5", "2/4", "-3", "2*(3+4)/5", "1/2/3", "2**3**2", "-2**2", "5-3-1", "(1.5)*2", "+4", "3*-2", "10**-2"]
REFUSED = [
    "",
    "007",
    "1 2",
    "5 (3)",
    "2,3",
    "(",
    "x",
    "1j",
    "__import__('os')",
    "[1]",
    "1 if 1 else 2",
    "1<2",
    "'a'",
    "9" * 2000,
    "(" * 500,
    "f(1)",
]


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_as_sympy_reads_it(text: str) -> None:
    ours = arithmetic(text)
    assert sympy.simplify(ours - parse_expr(text, evaluate=False)) == 0
    assert ours.is_number


@pytest.mark.parametrize("text", REFUSED)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"no arithmetic|more than|Exceeds"):
        arithmetic(text)


def test_a_tower_is_not_computed_while_it_is_read() -> None:
    assert isinstance(arithmetic("9**9**9**9"), sympy.Pow)
    assert len("9" * (MAX_CHARACTERS + 1)) > MAX_CHARACTERS


def test_math_verify_calls_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated(*_: object, **__: object) -> None:
        raise AssertionError("sympy's parser was called")

    monkeypatch.setattr(parser, "parse_expr", evaluated)
    assert parser.parse_expr_cached is arithmetic
    assert equality.same_as_published("The final answer is 2*(3+4)/5.", "2.8") is True
    assert equality.same_as_published("So 1/2 + 1/3", r"\frac{5}{6}") is True
