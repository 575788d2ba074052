"""Are two typed answers equal? True, False, which is a proof, or None: it cannot be told.

Different types differ, unless one of the rules here says otherwise: a name or a unit may be missing on one side, a pair may be an
interval, a list of named values a tuple, a choice the letter alone.
"""

from __future__ import annotations

import re

from unify_posttrain.rewards.answers import regions
from unify_posttrain.rewards.answers.algebra import same_expression
from unify_posttrain.rewards.answers.equations import named, relations
from unify_posttrain.rewards.answers.evaluation import symbols
from unify_posttrain.rewards.answers.kinds import clocks, congruences, determinant, ratios
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.quantities import INFINITE
from unify_posttrain.rewards.answers.several import several
from unify_posttrain.rewards.answers.units import ratio as units_ratio
from unify_posttrain.rewards.answers.values import (
    Answer,
    Choice,
    Clock,
    Congruence,
    Either,
    Figure,
    Items,
    Named,
    Numeral,
    Quantity,
    Ratio,
    Region,
    Relation,
    Spelling,
    Words,
)
from unify_posttrain.rewards.answers.verdicts import Verdict, any_of


def same(left: Answer, right: Answer) -> Verdict:
    """Whether two answers are equal; the order of the two does not matter."""
    if left == right:
        return True
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Items) and one.kind == "set" and len(one.items) == 1 and not isinstance(other, Items):
            item = one.items[0]  # a solution set of one; {x} of an expression may also be its fractional part
            if isinstance(item, Quantity) and not symbols(item.node) and isinstance(other, Quantity | Named):
                return _same(item, other)
    return _same(left, right)


def _same(left: Answer, right: Answer) -> Verdict:
    if left == right:
        return True
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Either):
            return any_of([_same(one.first, other), _same(one.second, other)])
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Spelling):
            return False if one.contradictory or (isinstance(other, Spelling) and other.contradictory) else None
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Choice):
            return _choice(one, other)
    if isinstance(left, Named) or isinstance(right, Named):
        return named(left, right, _same)
    if isinstance(left, Items) and isinstance(right, Items):
        return several(left, right, _same)
    for rule in (_equals_quantity, _equals_region, _equals_items):
        for one, other in ((left, right), (right, left)):
            verdict = rule(one, other)
            if verdict is not NotImplemented:
                return verdict
    return _alike(left, right)


def _choice(one: Choice, other: Answer) -> Verdict:
    if isinstance(other, Choice):
        return one.letter == other.letter
    if isinstance(other, Quantity) and other.node == Node("symbol", one.letter):
        return True
    if isinstance(other, Words) and other.text == one.letter:
        return True
    return False if one.rest is None else _same(one.rest, other)


def _equals_quantity(one: Answer, other: Answer) -> Verdict:
    if not isinstance(one, Quantity):
        return NotImplemented
    if isinstance(other, Quantity):
        return _quantities(one, other)
    if isinstance(other, Numeral):
        return bool(re.fullmatch(r"\d+", other.digits)) and same_expression(one.node, number(int(other.digits))) and not one.unit
    if isinstance(other, Words):
        return bool(one.node.kind == "symbol" and one.node.name == other.text)
    if isinstance(other, Ratio):
        return _quotient(other, one)
    if isinstance(other, Items) and other.kind == "determinant" and (value := determinant(other)) is not None:
        return same_expression(one.node, value)
    if isinstance(other, Items) and other.kind in ("cases", "union"):
        return None
    if isinstance(other, Region):
        found = regions.as_region(one)
        return False if found is None else regions.same_region(found, other)
    if isinstance(other, Relation):
        return False if not symbols(one.node) else None
    return False


def _quantities(left: Quantity, right: Quantity) -> Verdict:
    if left.unit == right.unit:
        for one, other in ((left, right), (right, left)):
            if one.node in INFINITE:
                return other.node in INFINITE and INFINITE[one.node] == INFINITE[other.node]
        return same_expression(left.node, right.node)
    units = {left.unit, right.unit}
    if "%" in units:
        share, other = (left, right) if left.unit == "%" else (right, left)
        if other.unit:
            return False
        hundredth = Node("divide", parts=(share.node, number(100)))
        return any_of([same_expression(share.node, other.node), same_expression(hundredth, other.node)])
    if "" not in units:
        size = units_ratio(left.unit, right.unit)
        return False if size is None else same_expression(Node("multiply", parts=(left.node, number(size))), right.node)
    with_unit, bare = (left, right) if left.unit else (right, left)
    if same_expression(with_unit.node, bare.node):
        return True
    if len(with_unit.unit) == 1 and with_unit.unit in symbols(bare.node):  # 5m, where the other one has 5 m
        return same_expression(Node("multiply", parts=(with_unit.node, Node("symbol", with_unit.unit))), bare.node)
    return same_expression(with_unit.node, bare.node)


def _quotient(ratio: Ratio, quantity: Quantity) -> Verdict:
    """A ratio of two is no number, but may be written as one: never a proof of equality."""
    first, last = ratio.terms[0], ratio.terms[-1]
    if len(ratio.terms) != 2 or not isinstance(first, Quantity) or not isinstance(last, Quantity):
        return False
    return same_expression(Node("divide", parts=(first.node, last.node)), quantity.node) and None


def _equals_region(one: Answer, other: Answer) -> Verdict:
    if not isinstance(one, Region):
        return NotImplemented
    if isinstance(other, Relation):
        return True if any(regions.same_region(one, each) for each in regions.bounded(other, one.variable)) else None
    found = regions.as_region(other)
    return False if found is None else regions.same_region(one, found)


def _equals_items(one: Answer, other: Answer) -> Verdict:
    if not isinstance(one, Items):
        return NotImplemented
    if isinstance(other, Relation) and (pair := regions.as_region(one)) is not None:
        return True if any(regions.same_region(pair, each) for each in regions.bounded(other)) else None
    if one == Items("set", ()) and isinstance(other, Words):
        return other.text in ("no solution", "no real solution")
    if one.kind in ("cases", "union"):
        return None
    return False


def _alike(left: Answer, right: Answer) -> Verdict:
    """Two of a kind, neither of which is a quantity, a region or several answers; or of different kinds."""
    if isinstance(left, Relation) and isinstance(right, Relation):
        return relations(left, right)
    if isinstance(left, Clock) and isinstance(right, Clock):
        return clocks(left, right)
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Clock) and isinstance(other, Ratio):
            return False if one.half else ratios(Ratio((Quantity(number(one.hour)), Quantity(number(one.minute)))), other, _same)
    if isinstance(left, Ratio) and isinstance(right, Ratio):
        return ratios(left, right, _same)
    if isinstance(left, Congruence) and isinstance(right, Congruence):
        return congruences(left, right)
    if isinstance(left, Figure) and isinstance(right, Figure):
        return left.kind == right.kind == "\\angle" and left.corners == right.corners[::-1]
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Numeral) and isinstance(other, Words):
            return one.digits.casefold() == other.text
    return False
