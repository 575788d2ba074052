"""Sets of real numbers as intervals: from relations, unions, intersections, differences, and whether two are the same."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from functools import cmp_to_key
from itertools import pairwise

import mpmath

from unify_posttrain.rewards.answers.algebra import real_constant, same_expression, same_value
from unify_posttrain.rewards.answers.evaluation import TooLargeError, UndefinedError, evaluate, symbols
from unify_posttrain.rewards.answers.functions import floating
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.values import Interval, Items, Quantity, Region, Relation

EVERYTHING = (Interval(None, None),)
_POSITIVE, _NEGATIVE = Interval(number(0), None), Interval(None, number(0))
NAMED = {
    "\\mathbb{R}^+": _POSITIVE, "\\mathbb{R}^{+}": _POSITIVE, "\\mathbb{R}_+": _POSITIVE, "\\mathbb{R}_{+}": _POSITIVE,
    "\\mathbb{R}_{>0}": _POSITIVE, "\\mathbb{R}^-": _NEGATIVE, "\\mathbb{R}^{-}": _NEGATIVE, "\\mathbb{R}_{<0}": _NEGATIVE,
    "\\mathbb{R}": Interval(None, None), "\\mathbb{R}_{\\ge0}": Interval(number(0), None, True, False),
}  # fmt: skip
_POLYNOMIAL = frozenset({"number", "symbol", "constant", "add", "multiply", "negate", "divide", "power", "function"})


def compared(left: Node, right: Node) -> int | None:
    """-1, 0 or 1 as one constant is below, equal to or above another; None: they are no real constants."""
    values = real_constant(left), real_constant(right)
    if values[0] is None or values[1] is None:
        return None
    if same_value(*values):
        return 0
    return -1 if mpmath.re(floating(values[0])) < mpmath.re(floating(values[1])) else 1


def region(intervals: Sequence[Interval], variable: str = "") -> Region:
    """Intervals in order, without empty ones, overlapping ones as one; those with unknown ends stay as they are."""
    if any(real_constant(end) is None for interval in intervals for end in (interval.low, interval.high) if end is not None):
        return Region(tuple(intervals), variable)
    merged: list[Interval] = []
    for interval in sorted(filter(_holds_something, intervals), key=cmp_to_key(_by_low)):
        if merged and _touches(merged[-1], interval):
            merged[-1] = _joined(merged[-1], interval)
        else:
            merged.append(interval)
    return Region(tuple(merged), variable)


def _holds_something(interval: Interval) -> bool:
    if interval.low is None or interval.high is None:
        return True
    order = compared(interval.low, interval.high)
    return order == -1 or (order == 0 and interval.low_closed and interval.high_closed)


def _by_low(left: Interval, right: Interval) -> int:
    if left.low is None or right.low is None:
        return (left.low is not None) - (right.low is not None)
    return compared(left.low, right.low) or right.low_closed - left.low_closed


def _touches(left: Interval, right: Interval) -> bool:
    if left.high is None or right.low is None:
        return True
    order = compared(left.high, right.low)
    return order == 1 or (order == 0 and (left.high_closed or right.low_closed))


def _joined(left: Interval, right: Interval) -> Interval:
    if left.high is None or right.high is None:
        return Interval(left.low, None, left.low_closed, False)
    order = compared(left.high, right.high)
    last = left if order == 1 or (order == 0 and left.high_closed) else right
    return Interval(left.low, last.high, left.low_closed, last.high_closed)


def complement(of: Region) -> Region:
    """All other real numbers."""
    gaps: list[Interval] = []
    low: Node | None = None
    low_closed, open_below = False, True
    for interval in of.intervals:
        if interval.low is not None:
            gaps.append(Interval(low, interval.low, low_closed, not interval.low_closed))
        low, low_closed = interval.high, not interval.high_closed
        open_below = interval.high is not None
    if open_below:
        gaps.append(Interval(low, None, low_closed, False))
    return region(gaps, of.variable)


def union(left: Region, right: Region) -> Region:
    """What is in one or in both."""
    return region([*left.intervals, *right.intervals], left.variable or right.variable)


def intersection(left: Region, right: Region) -> Region:
    """What is in both."""
    return complement(union(complement(left), complement(right)))


def known(of: Region) -> bool:
    """Whether all ends are constants, so that it can be computed with."""
    return all(end is None or real_constant(end) is not None for interval in of.intervals for end in (interval.low, interval.high))


def point(node: Node) -> Interval:
    """The interval of one number."""
    return Interval(node, node, True, True)


def as_region(answer: object) -> Region | None:
    """A pair, a finite set or a number as a set of real numbers; None: it cannot be one."""
    if isinstance(answer, Region):
        return answer
    if isinstance(answer, Quantity) and not answer.unit and real_constant(answer.node) is not None:
        return region([point(answer.node)])
    if isinstance(answer, Items) and answer.kind == "set" and all(isinstance(item, Quantity) for item in answer.items):
        return region([point(item.node) for item in answer.items if isinstance(item, Quantity)])
    if isinstance(answer, Items) and answer.kind == "tuple" and len(answer.items) == 2:
        low, high = answer.items
        if isinstance(low, Quantity) and isinstance(high, Quantity) and not low.unit and not high.unit:
            return region([Interval(low.node, high.node, answer.brackets[0] == "[", answer.brackets[1] == "]")])
    return None


def same_region(left: Region, right: Region) -> bool | None:
    """Whether two sets have the same numbers, and their unknowns the same name if both are named."""
    if left.variable and right.variable and left.variable != right.variable:
        return False
    if len(left.intervals) != len(right.intervals):
        return False if known(left) and known(right) else None
    verdict: bool | None = True
    for a, b in zip(left.intervals, right.intervals, strict=True):
        if (a.low_closed, a.high_closed) != (b.low_closed, b.high_closed):
            return False
        for one, other in ((a.low, b.low), (a.high, b.high)):
            if (one is None) != (other is None):
                return False
            same = True if one is None or other is None else same_expression(one, other)
            if same is False:
                return False
            verdict = None if same is None else verdict
    return verdict


def bounded(relation: Relation, variable: str = "") -> list[Region]:
    """The regions that a relation between unknowns may be meant as: a < x < b as (a, b) of x, t < a as (-∞, a) of t."""
    found: list[Region] = []
    terms, signs = relation.terms, relation.signs
    if not set(signs) <= {"<", "\\le"}:
        return found
    places = [1] if len(terms) == 3 else [0, 1] if len(terms) == 2 else []
    for place in places:
        name = terms[place].name if terms[place].kind == "symbol" else "f(x)"
        others = [term for index, term in enumerate(terms) if index != place]
        if (
            terms[place].kind not in ("symbol", "call")
            or (variable and name != variable)
            or any(name in symbols(other) for other in others)
        ):
            continue
        low, high = (terms[place - 1] if place else None), (terms[place + 1] if place + 1 < len(terms) else None)
        closed = [sign == "\\le" for sign in signs]
        found.append(Region((Interval(low, high, place > 0 and closed[place - 1], high is not None and closed[place]),), name))
    return found


def solved(relation: Relation) -> Region | None:
    r"""The numbers of which a relation in one unknown is true: between constants, absolute values, polynomials up to degree 2."""
    names = set().union(*(symbols(term) for term in relation.terms))
    if len(names) != 1 or not set(relation.signs) <= {"<", "\\le", "\\ne"}:
        return None
    (variable,) = names
    gaps = zip(pairwise(relation.terms), relation.signs, strict=True)
    parts = [_solved_pair(left, sign, right, variable) for (left, right), sign in gaps]
    result: Region | None = Region(EVERYTHING)
    for part in parts:
        if result is None or part is None:
            return None
        result = intersection(result, part)
    return None if result is None else Region(result.intervals, variable)


def _solved_pair(left: Node, sign: str, right: Node, variable: str) -> Region | None:
    closed = sign == "\\le"
    for inner, outer, below in ((left, right, True), (right, left, False)):
        if symbols(outer) or real_constant(outer) is None:
            continue
        if inner == Node("symbol", variable):
            if sign == "\\ne":
                return complement(region([point(outer)]))
            return region([Interval(None, outer, False, closed) if below else Interval(outer, None, closed, False)])
        if inner.kind == "function" and inner.name == "abs":
            negative = Node("negate", parts=(outer,))
            if sign == "\\ne":
                return None
            if below:  # |u| < c
                between = (
                    _solved_pair(negative, sign, inner.parts[0], variable),
                    _solved_pair(inner.parts[0], sign, outer, variable),
                )
                return None if between[0] is None or between[1] is None else intersection(*between)
            beyond = _solved_pair(inner.parts[0], sign, negative, variable), _solved_pair(outer, sign, inner.parts[0], variable)
            return None if beyond[0] is None or beyond[1] is None else union(*beyond)
    return _solved_polynomial(Node("add", parts=(left, Node("negate", parts=(right,)))), sign, variable)


def _solved_polynomial(node: Node, sign: str, variable: str) -> Region | None:
    """Where a polynomial up to degree 2 is below zero, not above it, or not zero."""
    coefficients = _coefficients(node, variable)
    if coefficients is None:
        return None
    c, b, a = coefficients
    if a == 0 and b == 0:
        return None
    if a == 0:
        roots = [number(-c / b)]
    else:
        discriminant = b * b - 4 * a * c
        if discriminant < 0:
            return Region(EVERYTHING if a < 0 or sign == "\\ne" else ())
        middle, half = (
            number(-b / (2 * a)),
            Node("divide", parts=(Node("function", "sqrt", (number(discriminant),)), number(2 * abs(a)))),
        )
        roots = (
            [middle]
            if discriminant == 0
            else [Node("add", parts=(middle, Node("negate", parts=(half,)))), Node("add", parts=(middle, half))]
        )
    if sign == "\\ne":
        return complement(region([point(root) for root in roots]))
    closed = sign == "\\le"
    last = (a or b) > 0
    ends = [None, *roots, None]
    found = [point(root) for root in roots] if closed else []
    positive = last
    for low, high in reversed(list(pairwise(ends))):
        if not positive:
            found.append(Interval(low, high, closed and low is not None, closed and high is not None))
        positive = not positive if len(roots) != 1 or a == 0 else positive  # a double root changes no sign
    return region(found)


def _coefficients(node: Node, variable: str) -> tuple[Fraction, Fraction, Fraction] | None:
    """Of 1, x and x^2, if it is such a polynomial with rational coefficients: through three points, and held against more."""
    if not _is_polynomial(node):
        return None
    try:
        values = [evaluate(node, {variable: Fraction(x)}) for x in range(7)]
    except (UndefinedError, TooLargeError, ValueError):
        return None
    if not all(isinstance(value, Fraction) for value in values):
        return None
    c = values[0]
    a = (values[2] - 2 * values[1] + values[0]) / 2
    b = values[1] - values[0] - a
    return (c, b, a) if all(value == c + b * x + a * x * x for x, value in enumerate(values)) else None


def _is_polynomial(node: Node) -> bool:
    if (
        node.kind not in _POLYNOMIAL
        or (node.kind == "function" and symbols(node))
        or (node.kind == "divide" and symbols(node.parts[1]))
    ):
        return False
    if node.kind == "power" and (node.parts[1].kind != "number" or node.parts[1].value not in (0, 1, 2)):
        return not symbols(node)
    return all(_is_polynomial(part) for part in node.parts)
