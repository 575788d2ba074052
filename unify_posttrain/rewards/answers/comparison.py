"""Are two typed answers equal? True, False, which is a proof, or None: it cannot be told.

Different types differ, unless one of the rules here says otherwise: a name or a unit may be missing on one side, a pair may be an
interval, a list of named values a tuple, a choice the letter alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from unify_posttrain.rewards.answers import regions
from unify_posttrain.rewards.answers.algebra import constant, proportional, same_expression
from unify_posttrain.rewards.answers.evaluation import symbols
from unify_posttrain.rewards.answers.expressions import parse
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.tokens import UnreadError, lex
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

Verdict = bool | None

_ROOTS = re.compile(r"([xzrtyk]|\\lambda)_\d+")
_INFINITE = {Node("constant", "infinity"): 1, Node("negate", parts=(Node("constant", "infinity"),)): -1}
_CENTS = {"cent": ("dollar", 100)}


def same(left: Answer, right: Answer) -> Verdict:
    """Whether two answers are equal; the order of the two does not matter."""
    if left == right:
        return True
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Either):
            return _any([same(one.first, other), same(one.second, other)])
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Spelling):
            return False if one.contradictory or (isinstance(other, Spelling) and other.contradictory) else None
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Choice):
            return _choice(one, other)
    if isinstance(left, Named) or isinstance(right, Named):
        return _named(left, right)
    if isinstance(left, Items) and isinstance(right, Items):
        return _items(left, right)
    for rule in (_equals_quantity, _equals_region, _equals_items):
        for one, other in ((left, right), (right, left)):
            verdict = rule(one, other)
            if verdict is not NotImplemented:
                return verdict
    return _alike(left, right)


def _any(verdicts: Sequence[Verdict]) -> Verdict:
    return True if True in verdicts else None if None in verdicts else False


def _all(verdicts: Sequence[Verdict]) -> Verdict:
    return False if False in verdicts else None if None in verdicts else True


def _choice(one: Choice, other: Answer) -> Verdict:
    if isinstance(other, Choice):
        return one.letter == other.letter
    if isinstance(other, Quantity) and other.node == Node("symbol", one.letter):
        return True
    if isinstance(other, Words) and other.text == one.letter:
        return True
    return False if one.rest is None else same(one.rest, other)


# Names ---------------------------------------------------------------------------------------------------------------


def _named(left: Answer, right: Answer) -> Verdict:
    """The same name and value, the same equation, or a value alone."""
    if isinstance(left, Named) and isinstance(right, Named):
        values = same(left.value, right.value)
        if left.name == right.name:
            return values if values is not False or not _equations(left, right) else _proportional(left, right)
        if values is True and _functions(left.name) and _functions(right.name):
            return True
        return _proportional(left, right)
    one, other = (left, right) if isinstance(left, Named) else (right, left)
    assert isinstance(one, Named)
    if isinstance(other, Relation):
        return _proportional(one, other)
    return same(one.value, other)


def _functions(name: str) -> bool:
    """Whether a name is one that any function may have: y, f(x)."""
    return name == "y" or bool(re.fullmatch(r"[fghy]\([a-z]\)", name))


def _equations(left: Named, right: Named) -> bool:
    return all(isinstance(each.value, Quantity) and symbols(each.value.node) for each in (left, right))


def _equation(answer: Named | Relation) -> Relation | None:
    if isinstance(answer, Relation):
        return answer if answer.signs == ("=",) else None
    if not isinstance(answer.value, Quantity):
        return None
    try:
        return Relation((parse(lex(answer.name)), answer.value.node), ("=",))
    except UnreadError:
        return None


def _proportional(left: Named | Relation, right: Named | Relation) -> Verdict:
    """Equations are one if what they put equal to zero is a multiple of the other's."""
    equations = _equation(left), _equation(right)
    if equations[0] is None or equations[1] is None:
        return False if isinstance(left, Named) and isinstance(right, Named) else None
    return proportional(_difference(equations[0]), _difference(equations[1]), positive=False)


def _difference(relation: Relation) -> Node:
    return Node("add", parts=(relation.terms[0], Node("negate", parts=(relation.terms[1],))))


# Several answers -----------------------------------------------------------------------------------------------------

_UNORDERED = frozenset({"set", "list", "union"})


def _items(left: Items, right: Items) -> Verdict:
    if left.kind == right.kind == "tuple" and left.brackets != right.brackets:
        return False
    if left.kind == right.kind:
        if left.kind == "list" and (named := _systems(left, right)) is not NotImplemented:
            return named
        ordered = left.kind not in _UNORDERED or any(item == Words("…") for item in left.items)
        return _pairwise(left.items, right.items, ordered)
    kinds = {left.kind, right.kind}
    if kinds == {"set", "list"}:
        return _pairwise(_values(left), _values(right), ordered=False)
    if kinds == {"tuple", "list"}:
        if len(left.items) != len(right.items):
            return False
        return _pairwise(_values(left), _values(right), ordered=True)
    if kinds == {"matrix", "tuple"}:
        return None
    return False


def _systems(left: Items, right: Items) -> Verdict:
    """Lists of which one or both give values to names."""
    named = [all(isinstance(item, Named) for item in items.items) for items in (left, right)]
    if not any(named):
        return NotImplemented
    if not all(named):
        return _pairwise(_values(left), _values(right), ordered=not any(_of_roots(items) for items in (left, right)))
    if len(left.items) != len(right.items):
        return False
    if _of_roots(left) and _of_roots(right):
        return _pairwise(_values(left), _values(right), ordered=False)
    names = [[item.name for item in items.items if isinstance(item, Named)] for items in (left, right)]
    if sorted(names[0]) != sorted(names[1]):
        return None if any("=" in name for each in names for name in each) else _pairwise(left.items, right.items, ordered=False)
    return _pairwise(_by_name(left), _by_name(right), ordered=True)


def _of_roots(items: Items) -> bool:
    """Whether its names only number the values of one unknown: x_1 and x_2."""
    names = [item.name.replace("{", "").replace("}", "") for item in items.items if isinstance(item, Named)]
    found = [_ROOTS.fullmatch(name) for name in names]
    return len(names) == len(items.items) and all(found) and len({match[1] for match in found if match}) == 1


def _by_name(items: Items) -> tuple[Answer, ...]:
    return tuple(sorted(items.items, key=lambda item: item.name if isinstance(item, Named) else ""))


def _values(items: Items) -> tuple[Answer, ...]:
    """Without names, those in alphabetical order."""
    if items.kind != "list" or not all(isinstance(item, Named) for item in items.items):
        return items.items
    ordered = items.items if _of_roots(items) else _by_name(items)
    return tuple(item.value for item in ordered if isinstance(item, Named))


def _pairwise(left: Sequence[Answer], right: Sequence[Answer], ordered: bool) -> Verdict:
    if len(left) != len(right):
        return False
    if ordered:
        return _all([same(a, b) for a, b in zip(left, right, strict=True)])
    rest = list(right)
    unknown = False
    for a in left:
        verdicts = [same(a, b) for b in rest]
        if True in verdicts:
            del rest[verdicts.index(True)]
        elif None in verdicts:
            unknown = True
        else:
            return False
    return None if unknown else True


# Types that may be equal to others -----------------------------------------------------------------------------------


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
    if isinstance(other, Items) and other.kind == "set" and len(other.items) == 1:
        return same(one, other.items[0])
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
            if one.node in _INFINITE:
                return other.node in _INFINITE and _INFINITE[one.node] == _INFINITE[other.node]
        return same_expression(left.node, right.node)
    units = {left.unit, right.unit}
    if "%" in units:
        share, other = (left, right) if left.unit == "%" else (right, left)
        if other.unit:
            return False
        hundredth = Node("divide", parts=(share.node, number(100)))
        return _any([same_expression(share.node, other.node), same_expression(hundredth, other.node)])
    if "" not in units:
        for one, other in ((left, right), (right, left)):
            if one.unit in _CENTS and _CENTS[one.unit][0] == other.unit:
                return same_expression(Node("divide", parts=(one.node, number(_CENTS[one.unit][1]))), other.node)
        return False
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
        return None
    found = regions.as_region(other)
    return False if found is None else regions.same_region(one, found)


def _equals_items(one: Answer, other: Answer) -> Verdict:
    if not isinstance(one, Items):
        return NotImplemented
    if one.kind in ("set", "list") and len(one.items) == 1:
        return same(one.items[0], other)
    if one.kind in ("cases", "union"):
        return None
    return False


def _alike(left: Answer, right: Answer) -> Verdict:
    """Two of a kind, neither of which is a quantity, a region or several answers; or of different kinds."""
    if isinstance(left, Relation) and isinstance(right, Relation):
        return _relations(left, right)
    if isinstance(left, Clock) and isinstance(right, Clock):
        halves = {left.half, right.half} - {""}
        return (left.hour, left.minute) == (right.hour, right.minute) and len(halves) < 2
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Clock) and isinstance(other, Ratio):
            return False if one.half else _ratios(Ratio((Quantity(number(one.hour)), Quantity(number(one.minute)))), other)
    if isinstance(left, Ratio) and isinstance(right, Ratio):
        return _ratios(left, right)
    if isinstance(left, Congruence) and isinstance(right, Congruence):
        return _congruences(left, right)
    if isinstance(left, Figure) and isinstance(right, Figure):
        return left.kind == right.kind == "\\angle" and left.corners == right.corners[::-1]
    for one, other in ((left, right), (right, left)):
        if isinstance(one, Numeral) and isinstance(other, Words):
            return one.digits.casefold() == other.text
    return False


def _relations(left: Relation, right: Relation) -> Verdict:
    if len(left.terms) == len(right.terms) == 2 and left.signs == right.signs:
        return proportional(_difference(left), _difference(right), positive=left.signs[0] not in ("=", "\\ne"))
    if left.signs != right.signs:
        return False if len(left.terms) == len(right.terms) and set(left.signs) | set(right.signs) <= {"<", "\\le"} else None
    return _all([same_expression(a, b) for a, b in zip(left.terms, right.terms, strict=True)])


def _ratios(left: Ratio, right: Ratio) -> Verdict:
    if len(left.terms) != len(right.terms):
        return False
    if not all(isinstance(term, Quantity) for term in (*left.terms, *right.terms)):
        return _pairwise(left.terms, right.terms, ordered=True)
    nodes = [[term.node for term in ratio.terms if isinstance(term, Quantity)] for ratio in (left, right)]
    first_left, first_right = nodes[0][0], nodes[1][0]
    return _all(
        [
            same_expression(Node("multiply", parts=(a, first_right)), Node("multiply", parts=(b, first_left)))
            for a, b in zip(nodes[0][1:], nodes[1][1:], strict=True)
        ]
    )


def _congruences(left: Congruence, right: Congruence) -> Verdict:
    if not same_expression(left.modulus, right.modulus):
        return False
    quotient = Node("divide", parts=(Node("add", parts=(left.value, Node("negate", parts=(right.value,)))), left.modulus))
    value = constant(quotient)
    return same_expression(left.value, right.value) if value is None else getattr(value, "denominator", 0) == 1
