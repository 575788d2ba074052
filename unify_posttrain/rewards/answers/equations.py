"""Named values, equations and inequalities: equations are equal up to a factor and to the side a term stands on."""

from __future__ import annotations

import re

from unify_posttrain.rewards.answers.algebra import proportional, same_expression
from unify_posttrain.rewards.answers.evaluation import symbols
from unify_posttrain.rewards.answers.expressions import parse
from unify_posttrain.rewards.answers.nodes import Node
from unify_posttrain.rewards.answers.tokens import UnreadError, lex
from unify_posttrain.rewards.answers.values import Answer, Named, Quantity, Region, Relation
from unify_posttrain.rewards.answers.verdicts import Same, Verdict, all_of


def named(left: Answer, right: Answer, same: Same) -> Verdict:
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
    if isinstance(other, Relation) and not isinstance(one.value, Region):
        return _proportional(one, other)
    return same(one.value, other)


def _functions(name: str) -> bool:
    """Whether a name is one that any function may have: y, f(x)."""
    return name == "y" or bool(re.fullmatch(r"[fgh]\([a-z]\)|[fgh]:[a-z]", name))


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


def relations(left: Relation, right: Relation) -> Verdict:
    """Whether two relations are one: up to a factor, above zero if the relation has a direction."""
    if set(left.signs) & {"\\perp", "\\parallel"}:
        orders = (right.terms, right.terms[::-1])
        return left.signs == right.signs and any(
            all(same_expression(a, b) for a, b in zip(left.terms, order, strict=True)) for order in orders
        )
    if len(left.terms) == len(right.terms) == 2 and left.signs == right.signs:
        return proportional(_difference(left), _difference(right), positive=left.signs[0] not in ("=", "\\ne"))
    if left.signs != right.signs:
        return False if len(left.terms) == len(right.terms) and set(left.signs) | set(right.signs) <= {"<", "\\le"} else None
    return all_of([same_expression(a, b) for a, b in zip(left.terms, right.terms, strict=True)])
