"""Exact value of an arithmetic formula that a model wrote, without ever running it.

Python's own parser reads the text, and a walk over the tree computes it in fractions. Everything is bounded before it is
computed: characters, nesting, the digits of every number. So no text takes more than a fraction of a millisecond.

    >>> evaluate("8*3+(5+2)/2")
    Formula(value=Fraction(55, 2), numbers=(2, 2, 3, 5, 8))
"""

from __future__ import annotations

import ast
import operator
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction

MAX_CHARACTERS = 200
MAX_DEPTH = 20  # of parentheses, and of the tree, where a chain 1+1+1+... is one level per number and a sign is one, too
MAX_DIGITS = 12  # of a number in the text, and of numerator and denominator of every intermediate result

PARSE_ATTEMPTS = 4

_PARSER = threading.Lock()

# ASCII only, since \d and isdigit() accept other scripts' digits. No dot, letter, comma or underscore: neither floats
# nor names, calls or attributes reach the parser.
_CHARACTERS = re.compile(r"[0-9+*/() -]+")
_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class FormulaError(ValueError):
    """The text is no formula of + - * /, parentheses and whole numbers within the bounds, or it divides by zero."""


@dataclass(frozen=True)
class Formula:
    """What a formula amounts to.

    Attributes:
        value: exact.
        numbers: every number written in it, as often as it is written, in rising order.
    """

    value: Fraction
    numbers: tuple[int, ...]


def evaluate(text: str) -> Formula:
    """Compute ``text``, exactly.

    Allowed are + - * / between two operands, a minus sign before one, parentheses, whole numbers without leading zeros,
    and spaces between these. Refused: everything else, powers and floor division included.

    Raises:
        FormulaError: see there. No text makes it raise anything else.
    """
    if len(text) > MAX_CHARACTERS:
        raise FormulaError(f"formula of {len(text)} characters; at most {MAX_CHARACTERS} are read")
    if not _CHARACTERS.fullmatch(text) or text != text.strip(" "):
        raise FormulaError(f"{text!r}: a formula starts and ends without a space and consists of 0-9 + - * / ( ) and spaces")
    _check_parentheses(text)
    try:
        tree = _parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: depends on Python's version
        raise FormulaError(f"{text!r} is no formula: {error}") from None
    numbers: list[int] = []
    value = _value(tree.body, numbers, 1)
    return Formula(value, tuple(sorted(numbers)))


def _parse(text: str) -> ast.Expression:
    """``ast.parse``, one thread at a time: Python before 3.11.8 keeps the depth of the tree that it builds in one place for all
    threads, and calls it a SystemError when it finds it changed. Others who parse do not ask for our lock, hence the retries."""
    with _PARSER:
        for _ in range(PARSE_ATTEMPTS - 1):
            with suppress(SystemError):
                return ast.parse(text, mode="eval")
        return ast.parse(text, mode="eval")


def _check_parentheses(text: str) -> None:
    depth = 0
    for character in text:
        depth += (character == "(") - (character == ")")
        if depth > MAX_DEPTH:
            raise FormulaError(f"formula nested more than {MAX_DEPTH} deep")


def _value(node: ast.expr, numbers: list[int], depth: int) -> Fraction:
    """Value of a tree; appends its numbers to ``numbers``."""
    if depth > MAX_DEPTH:
        raise FormulaError(f"formula nested more than {MAX_DEPTH} deep")
    if isinstance(node, ast.Constant) and type(node.value) is int:
        numbers.append(node.value)
        return _bounded(Fraction(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, numbers, depth + 1)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        left, right = _value(node.left, numbers, depth + 1), _value(node.right, numbers, depth + 1)
        if isinstance(node.op, ast.Div) and right == 0:
            raise FormulaError("formula divides by zero")
        return _bounded(_OPERATIONS[type(node.op)](left, right))
    raise FormulaError(f"{type(node).__name__} is not allowed in a formula; use + - * /, parentheses and whole numbers")


def _bounded(value: Fraction) -> Fraction:
    if max(abs(value.numerator), value.denominator) >= 10**MAX_DIGITS:
        raise FormulaError(f"formula with a number of more than {MAX_DIGITS} digits")
    return value
