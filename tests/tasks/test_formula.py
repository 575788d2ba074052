"""The formula evaluator: exact values, and text that must be refused at once and with its own error."""

from __future__ import annotations

import ast
import inspect
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from unify_posttrain.tasks.formula import MAX_CHARACTERS, MAX_DEPTH, MAX_DIGITS, PARSE_ATTEMPTS, FormulaError, evaluate


@pytest.mark.parametrize(
    ("text", "value", "numbers"),
    [
        ("7", 7, (7,)),
        ("8*3+(5+2)/2", Fraction(55, 2), (2, 2, 3, 5, 8)),  # 24 + 7/2
        ("10-4-3", 3, (3, 4, 10)),  # from the left: 6-3
        ("48/6/4", 2, (4, 6, 48)),  # from the left: 8/4
        ("2+3*4", 14, (2, 3, 4)),
        ("(2+3)*4", 20, (2, 3, 4)),
        ("1/3+1/3+1/3", 1, (1, 1, 1, 3, 3, 3)),  # 0.999... in floating point
        ("8/(3-8/3)", 24, (3, 3, 8, 8)),
        ("-3+10", 7, (3, 10)),  # the sign belongs to the formula, the number used is 3
        ("5--3", 8, (3, 5)),
        ("-(-(2))", 2, (2,)),
        ("0*5", 0, (0, 5)),
        ("7 * ( 2 + 1 )", 21, (1, 2, 7)),
        ("9" * MAX_DIGITS, int("9" * MAX_DIGITS), (int("9" * MAX_DIGITS),)),
        ("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH, 1, (1,)),
        ("+".join(["1"] * MAX_DEPTH), MAX_DEPTH, (1,) * MAX_DEPTH),
    ],
)
def test_values_by_hand(text: str, value: Fraction, numbers: tuple[int, ...]) -> None:
    formula = evaluate(text)
    assert (formula.value, formula.numbers) == (value, numbers)
    assert type(formula.value) is Fraction


@pytest.mark.parametrize(
    "text",
    [
        # nothing, and what is no formula
        *(
            "",
            " ",
            "(",
            ")",
            "()",
            "1+",
            "*1",
            "1 2",
            "1 +  ",
            " 1",
            "1\n",
            "\n1",
            "1\n+2",
            "1\t+2",
            "1;2",
            "1,2",
            "1=1",
            "(1,)",
            "# 1",
        ),
        *("1+2)", "(1+2", ")1(", "3(4)", "(3)(4)", "1/", "//", "- ", "-", "+1", "1++2", "~1", "not 1", "1 if 1 else 2", "1<2"),
        # operations that would explode or mean something else
        *("2**2", "9**9**9", "9**9**9**9", "2**-1", "7//2", "7%2", "1<<99", "7^2", "7|1", "2* *3"),
        # other kinds of numbers
        *("1.5", "1.", ".5", "1e9", "1_0", "0x10", "0b1", "1j", "08", "00012", "True", "inf", "nan"),
        *("\u0661+1", "\uff11+1", "\u00b2", "1\u22122", "2\u00d73", "1\u20442", "1\u00a0+2", "1\u200b+2"),
        # code
        *(
            "x",
            "a+b",
            "print(1)",
            "abs(1)",
            "int",
            "__import__('os').system('true')",
            "(1).real",
            "1 .real",
            "[1][0]",
            "{1}",
            "'1'",
        ),
        *("lambda: 1", "x:=1", "(x:=1)", "f'{1}'", "[i for i in (1,)]", "exit()", "1\x00", "\x00", "1\\\n+2", "\ud800", "1\r"),
        # division by zero, open or hidden
        *("1/0", "0/0", "1/(2-2)", "3/(1/2-2/4)", "1/-0"),
        # too long, too deep, too large
        "1" * (MAX_CHARACTERS + 1),
        "+".join(["1"] * MAX_CHARACTERS),
        "1" * (MAX_DIGITS + 1),
        "-" + "9" * (MAX_DIGITS + 1),
        "999999*9999999",  # 13 digits
        "1/999999/9999999",  # 13 digits below the line
        "*".join(["9999"] * 4),
        "(" * (MAX_DEPTH + 1) + "1" + ")" * (MAX_DEPTH + 1),
        "(" * 99 + "1" + ")" * 99,
        "(" * MAX_CHARACTERS,
        ")" * MAX_CHARACTERS,
        "-" * (MAX_CHARACTERS - 1) + "1",
        "+".join(["1"] * (MAX_DEPTH + 1)),
        "(" * 100_000,
        "-" * 1_000_000 + "1",
        "9**" * 300_000 + "9",
    ],
)
def test_refused(text: str) -> None:
    start = time.perf_counter()
    with pytest.raises(FormulaError) as caught:
        evaluate(text)
    assert time.perf_counter() - start < 0.5
    assert len(str(caught.value)) < 1000  # no million characters in a log


def test_a_low_recursion_limit_is_no_way_out() -> None:
    """The deepest accepted formula is far from Python's own limits, and one just beyond is refused before they matter."""
    limit, depth = sys.getrecursionlimit(), len(inspect.stack(0))
    try:
        sys.setrecursionlimit(depth + 60)
        assert evaluate("(" * MAX_DEPTH + "1" + ")" * MAX_DEPTH).value == 1
        for text in ("(" * 99 + "1" + ")" * 99, "-" * 150 + "1", "1" + "+1" * 90):
            with pytest.raises(FormulaError):
                evaluate(text)
    finally:
        sys.setrecursionlimit(limit)


trees = st.recursive(
    st.integers(0, 99).map(str),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]}{t[1]}{t[2]})"), inner.map(lambda t: f"-({t})")
    ),
    max_leaves=6,
)


def reference(text: str) -> tuple[Fraction, Counter[int]] | None:
    """An independent evaluator: recursive descent over fully parenthesised text."""

    def parse(position: int) -> tuple[Fraction, int]:
        if text[position] == "-":
            value, position = parse(position + 1)
            return -value, position
        if text[position] == "(":
            left, position = parse(position + 1)
            if text[position] == ")":
                return left, position + 1
            sign = text[position]
            right, position = parse(position + 1)
            return {
                "+": lambda: left + right, "-": lambda: left - right, "*": lambda: left * right, "/": lambda: left / right,
            }[sign](), position + 1  # fmt: skip
        end = position
        while end < len(text) and text[end].isdigit():
            end += 1
        numbers[int(text[position:end])] += 1
        return Fraction(int(text[position:end])), end

    numbers: Counter[int] = Counter()
    try:
        return parse(0)[0], numbers
    except ZeroDivisionError:
        return None


@given(trees)
@example("(1/(0*5))")
def test_agrees_with_another_evaluator(text: str) -> None:
    expected = reference(text)
    if expected is None or len(text) > MAX_CHARACTERS:
        with pytest.raises(FormulaError):
            evaluate(text)
    else:
        formula = evaluate(text)
        assert (formula.value, Counter(formula.numbers)) == expected


@given(
    st.one_of(st.text(max_size=60), st.text(alphabet="0123456789+-*/() ", max_size=60), st.text(alphabet="(-1*)/", max_size=250))
)
def test_no_text_raises_anything_else(text: str) -> None:
    try:
        formula = evaluate(text)
    except FormulaError:
        return
    # whatever was accepted, Python reads in the same way
    assert set(text) <= set("0123456789+-*/() ") and "**" not in text and "//" not in text
    assert sum(formula.numbers) >= 0 and len(formula.numbers) >= 1


def test_threads_parse_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """CPython before 3.11.8 raises SystemError when two threads build a tree at once (gh-106905); verl scores in threads."""
    inside, most = 0, 0
    parse = ast.parse

    def watched(*args: Any, **kwargs: Any) -> ast.AST:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.001)
        try:
            return parse(*args, **kwargs)
        finally:
            inside -= 1

    monkeypatch.setattr(ast, "parse", watched)
    with ThreadPoolExecutor(8) as pool:
        values = [formula.value for formula in pool.map(evaluate, (f"{n}+1" for n in range(64)))]
    assert (values, most) == ([Fraction(n + 1) for n in range(64)], 1)


@pytest.mark.parametrize("failures", [1, PARSE_ATTEMPTS - 1])
def test_an_interpreter_that_miscounts_is_asked_again(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    parse, left = ast.parse, failures

    def flaky(*args: Any, **kwargs: Any) -> ast.AST:
        nonlocal left
        if left:
            left -= 1
            raise SystemError("AST constructor recursion depth mismatch (before=30, after=26)")
        return parse(*args, **kwargs)

    monkeypatch.setattr(ast, "parse", flaky)
    assert evaluate("2*3").value == 6 and left == 0
