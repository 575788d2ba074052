"""Expressions as trees."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from unify_posttrain.rewards.answers.tokens import UnreadError

MAX_DIGITS = 400
MAX_EXPONENT = 400  # of a number as 1e400


@dataclass(frozen=True)
class Node:
    """A node of an expression.

    Attributes:
        kind: number, symbol, constant, add, multiply, divide, power, negate, either (±, one sign for all of an expression),
            function (known: its name), call (unknown: its name), sum, product.
        name: of a symbol, constant or function; a number's value stands in `value`.
        parts: operands; of sum and product the first bound, the last bound and the body.
    """

    kind: str
    name: str = ""
    parts: tuple[Node, ...] = ()
    value: Fraction = Fraction(0)


def number(value: Fraction | int) -> Node:
    """A number's node."""
    return Node("number", value=Fraction(value))


def numeral(text: str) -> Fraction:
    """The exact value of digits, with a point or an exponent.

    Raises:
        UnreadError: too many digits.
    """
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > MAX_DIGITS or (exponent and abs(int(exponent)) > MAX_EXPONENT):
        raise UnreadError("too many digits")
    return Fraction(text)


def described(node: Node) -> Any:
    """A node as nested tuples, for messages and tests."""
    head = node.value if node.kind == "number" else node.name or node.kind
    return (head, *map(described, node.parts)) if node.parts else head
