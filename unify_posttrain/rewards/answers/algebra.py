"""Equality of expressions: exact where all is rational, else agreement at seeded points in high precision.

A difference at one point is a proof that two expressions differ. Agreement at all of several points, to 45 digits, is acceptance.
Nothing is simplified, so nothing hangs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import mpmath

from unify_posttrain.rewards.answers.evaluation import (
    DIGITS,
    OutsideError,
    TooLargeError,
    UndefinedError,
    UnknownError,
    Value,
    counted_symbols,
    evaluate,
    symbols,
)
from unify_posttrain.rewards.answers.functions import floating
from unify_posttrain.rewards.answers.nodes import Node

POINTS = 5  # that have to agree
TRIES = 40  # points that are looked at, for some lie outside of the domain
AGREEMENT = 45  # digits
PROOF = 30  # digits within which a difference is no proof, for it may be an error of rounding


def same_expression(left: Node, right: Node) -> bool | None:
    """Whether two expressions are equal; None: it cannot be told."""
    verdict = _agree(left, right)
    if verdict is False:
        for one, other in ((left, right), (right, left)):
            if (renamed := _same_constant_of_integration(one, other)) is not None:
                return _agree(renamed, other)
    return verdict


def _agree(left: Node, right: Node) -> bool | None:
    agreed = apart = 0
    names = symbols(left) | symbols(right)
    for point in points(names, counted_symbols(left) | counted_symbols(right)):
        values: list[Value] = []
        try:
            for node in (left, right):
                try:
                    values.append(evaluate(node, point))
                except OutsideError:
                    continue
        except UndefinedError:
            if not names:
                return _one_is_undefined(left, right)
            continue
        except (TooLargeError, UnknownError, KeyError):
            return None
        apart += len(values) == 1
        if len(values) < 2:
            continue
        close = same_value(*values)
        if close is not True:
            return close
        agreed += 1
        if agreed == POINTS or not names:
            return True
    return False if apart >= POINTS and not agreed else None  # each is real only where the other one is not


def _one_is_undefined(left: Node, right: Node) -> bool | None:
    """Of two constants, one of which has no value: they differ if the other one has."""
    defined = 0
    for node in (left, right):
        try:
            evaluate(node, {})
            defined += 1
        except (UndefinedError, TooLargeError, UnknownError, KeyError):
            pass
    return False if defined == 1 else None


def same_value(left: Value, right: Value) -> bool | None:
    """Whether two numbers are equal; None: they are too close for a proof, and not close enough."""
    if isinstance(left, Fraction) and isinstance(right, Fraction):
        return left == right
    with mpmath.workdps(DIGITS):
        left, right = floating(left), floating(right)
        difference, scale = abs(left - right), max(abs(left), abs(right), mpmath.mpf(10) ** -10)
        if difference <= scale * mpmath.mpf(10) ** -AGREEMENT:
            return True
        return False if difference > scale * mpmath.mpf(10) ** -PROOF else None


def points(names: set[str], counted: set[str]) -> Iterator[dict[str, Fraction]]:
    """Points of rational numbers of both signs, or of whole numbers from 2 on; the same ones for the same names."""
    if not names:
        yield {}
        return
    for number in range(TRIES):
        yield {name: _coordinate(name, number, name in counted) for name in names}


def _coordinate(name: str, number: int, counted: bool) -> Fraction:
    digest = hashlib.blake2b(f"{name}\0{number}".encode(), digest_size=8).digest()
    draw = int.from_bytes(digest, "big")
    if counted:
        return Fraction(2 + draw % 9)
    size = Fraction(300 + draw % 2711, 1009)
    negative = number == 1 or (number % 3 and draw & 1 << 40)  # every third point has no negative number, for what has roots
    return -size if negative else size


def constant(node: Node) -> Value | None:
    """The value of an expression without symbols; None: it has some, or no value."""
    if symbols(node):
        return None
    try:
        return evaluate(node, {})
    except (UndefinedError, TooLargeError, UnknownError, OutsideError, KeyError):
        return None


def real_constant(node: Node) -> Value | None:
    """The value of an expression without symbols if it is real."""
    value = constant(node)
    return None if value is None or mpmath.im(value) != 0 else value


def proportional(left: Node, right: Node, positive: bool) -> bool | None:
    """Whether one expression is a constant multiple of the other, by a factor that is not zero (or above zero); None: unknown."""
    names = symbols(left) | symbols(right)
    factor: Value | None = None
    agreed = 0
    for point in points(names, counted_symbols(left) | counted_symbols(right)):
        try:
            values = evaluate(left, point), evaluate(right, point)
        except (OutsideError, UndefinedError):
            continue
        except (TooLargeError, UnknownError, KeyError):
            return None
        if (values[0] == 0) != (values[1] == 0):
            return False
        if values[1] == 0:
            continue
        with mpmath.workdps(DIGITS):
            exact = isinstance(values[0], Fraction) and isinstance(values[1], Fraction)
            here = values[0] / values[1] if exact else floating(values[0]) / floating(values[1])
        if positive and not (mpmath.im(here) == 0 and mpmath.re(here) > 0):
            return False
        if factor is not None and (close := same_value(factor, here)) is not True:
            return close
        factor = here
        agreed += 1
        if agreed == POINTS or not names:
            return True
    return None


_CONSTANT = re.compile(r"[Cc]_\d")


def _renamed(node: Node, names: dict[str, str]) -> Node:
    return replace(node, name=names.get(node.name, node.name), parts=tuple(_renamed(part, names) for part in node.parts))


def _same_constant_of_integration(left: Node, right: Node) -> Node | None:
    """`x^2+C` with the other's `c`, where each of the two letters stands alone in a sum, once."""
    capitals = {name: name.lower() for name in symbols(left) if _CONSTANT.fullmatch(name) and name.isupper()}
    small = set(capitals.values())
    if capitals and small <= symbols(right) and not set(capitals) & symbols(right) and not small & symbols(left):
        return _renamed(left, capitals)
    found = [
        [part.name for part in node.parts if part.kind == "symbol" and part.name in "Cc"] if node.kind == "add" else []
        for node in (left, right)
    ]
    if [len(names) for names in found] != [1, 1] or found[0] == found[1]:
        return None
    if found[0][0] in symbols(right) or found[1][0] in symbols(left):
        return None
    other = Node("symbol", found[1][0])
    return Node("add", parts=tuple(other if part == Node("symbol", found[0][0]) else part for part in left.parts))
