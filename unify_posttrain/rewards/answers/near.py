"""Numeric equality as in PRIME's grader: to a relative tolerance, π as itself or as 3.14."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

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
    if (
        isinstance(left, Items)
        and isinstance(right, Items)
        and any(isinstance(item, Named) for item in (*left.items, *right.items))
    ):
        return _systems_near(left, right, tolerance)
    if isinstance(left, Items) and isinstance(right, Items):
        return (
            left.kind == right.kind
            and left.brackets == right.brackets
            and _all_near(left.items, right.items, left.kind in ("set", "list"))
        )
    if not isinstance(left, Quantity) or not isinstance(right, Quantity) or (left.unit and right.unit and left.unit != right.unit):
        return False
    return any(_close(_with_pi(left.node, pi), _with_pi(right.node, pi), tolerance) for pi in (None, ROUNDED_PI))


def _systems_near(left: Items, right: Items, tolerance: float) -> bool:
    """Named values of the same names one by one; those without names do not come near."""
    sides = [{item.name: item.value for item in items.items if isinstance(item, Named)} for items in (left, right)]
    if len(sides[0]) != len(left.items) or len(sides[1]) != len(right.items) or sides[0].keys() != sides[1].keys():
        return False
    return all(near(value, sides[1][name], tolerance) for name, value in sides[0].items())


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
    return bool(abs(a - b) <= tolerance * max(abs(a), abs(b)))


def _with_pi(node: Node, pi: Node | None) -> Node:
    if pi is None:
        return node
    if node == Node("constant", "pi"):
        return pi
    return replace(node, parts=tuple(_with_pi(part, pi) for part in node.parts))
