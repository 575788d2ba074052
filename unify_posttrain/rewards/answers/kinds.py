"""Answers of one kind: ratios, times of day, congruences."""

from __future__ import annotations

from unify_posttrain.rewards.answers.algebra import constant, same_expression
from unify_posttrain.rewards.answers.nodes import Node
from unify_posttrain.rewards.answers.values import Clock, Congruence, Items, Quantity, Ratio
from unify_posttrain.rewards.answers.verdicts import Same, Verdict, all_of, pairwise


def clocks(left: Clock, right: Clock) -> bool:
    """Whether two times are one: 4:30 pm is 16:30, and 4:30 where the question says which half of the day."""
    if left.half == right.half or (left.half and right.half):
        return left == right
    with_half, bare = (left, right) if left.half else (right, left)
    later = with_half.hour % 12 + (12 if with_half.half == "pm" else 0)
    return with_half.minute == bare.minute and bare.hour in (with_half.hour, later)


def ratios(left: Ratio, right: Ratio, same: Same) -> Verdict:
    """Whether the terms of two ratios are proportional."""
    if len(left.terms) != len(right.terms):
        return False
    if not all(isinstance(term, Quantity) for term in (*left.terms, *right.terms)):
        return pairwise(left.terms, right.terms, True, same)
    nodes = [[term.node for term in ratio.terms if isinstance(term, Quantity)] for ratio in (left, right)]
    first_left, first_right = nodes[0][0], nodes[1][0]
    return all_of(
        [
            same_expression(Node("multiply", parts=(a, first_right)), Node("multiply", parts=(b, first_left)))
            for a, b in zip(nodes[0][1:], nodes[1][1:], strict=True)
        ]
    )


def congruences(left: Congruence, right: Congruence) -> Verdict:
    """Whether two residues are the same, to the same modulus."""
    if not same_expression(left.modulus, right.modulus):
        return False
    quotient = Node("divide", parts=(Node("add", parts=(left.value, Node("negate", parts=(right.value,)))), left.modulus))
    value = constant(quotient)
    return same_expression(left.value, right.value) if value is None else getattr(value, "denominator", 0) == 1


def determinant(table: Items) -> Node | None:
    """The value of a determinant of up to 4 rows as an expression; None if it is no square of expressions."""
    rows = [row.items for row in table.items if isinstance(row, Items)]
    if not 0 < len(rows) <= 4 or any(len(row) != len(rows) for row in rows):
        return None
    entries = [[item.node if isinstance(item, Quantity) and not item.unit else None for item in row] for row in rows]
    if any(node is None for row in entries for node in row):
        return None
    return _determinant([[node for node in row if node is not None] for row in entries])


def _determinant(rows: list[list[Node]]) -> Node:
    if len(rows) == 1:
        return rows[0][0]
    terms = []
    for column, entry in enumerate(rows[0]):
        term = Node("multiply", parts=(entry, _determinant([row[:column] + row[column + 1 :] for row in rows[1:]])))
        terms.append(Node("negate", parts=(term,)) if column % 2 else term)
    return Node("add", parts=tuple(terms))
