"""Numeric equality as in PRIME's grader: to a relative tolerance, π as itself or as 3.14."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import mpmath

from unify_posttrain.rewards.answers.algebra import constant
from unify_posttrain.rewards.answers.functions import floating
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.values import Answer, Either, Items, Named, Quantity

RELATIVE_TOLERANCE = 1e-4
ROUNDED_PI = number(Fraction(314, 100))


def near(left: Answer, right: Answer, tolerance: float = RELATIVE_TOLERANCE) -> bool:
    """Whether two answers are numbers, or equally many of them, that are equal within the tolerance."""
    left, right = (each.value if isinstance(each, Named) else each for each in (left, right))
    left, right = (each.first if isinstance(each, Either) else each for each in (left, right))
    if isinstance(left, Items) and isinstance(right, Items):
        return (
            left.kind == right.kind
            and left.brackets == right.brackets
            and _all_near(left.items, right.items, left.kind in ("set", "list"))
        )
    if not isinstance(left, Quantity) or not isinstance(right, Quantity) or (left.unit and right.unit and left.unit != right.unit):
        return False
    return any(_close(_with_pi(left.node, pi), _with_pi(right.node, pi), tolerance) for pi in (None, ROUNDED_PI))


def _all_near(left: Sequence[Answer], right: Sequence[Answer], unordered: bool) -> bool:
    if len(left) != len(right):
        return False
    if not unordered:
        return all(near(a, b) for a, b in zip(left, right, strict=True))
    rest = list(right)
    for a in left:
        match = next((index for index, b in enumerate(rest) if near(a, b)), None)
        if match is None:
            return False
        del rest[match]
    return True


def _close(left: Node, right: Node, tolerance: float) -> bool:
    values = constant(left), constant(right)
    if values[0] is None or values[1] is None:
        return False
    a, b = (floating(value) for value in values)
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b), mpmath.mpf(10) ** -300))


def _with_pi(node: Node, pi: Node | None) -> Node:
    if pi is None:
        return node
    if node == Node("constant", "pi"):
        return pi
    return replace(node, parts=tuple(_with_pi(part, pi) for part in node.parts))
