r"""A number or an expression with its unit, ± as two of them, and intervals between two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unify_posttrain.rewards.answers import regions
from unify_posttrain.rewards.answers.expressions import parse
from unify_posttrain.rewards.answers.nodes import Node, number
from unify_posttrain.rewards.answers.phrases import number_in_words
from unify_posttrain.rewards.answers.tokens import Tokens, UnreadError, is_sign, joined
from unify_posttrain.rewards.answers.units import behind, currency, multiple
from unify_posttrain.rewards.answers.values import Answer, Interval, Items, Quantity, Region, Spelling, Words
from unify_posttrain.rewards.answers.words import is_word

INFINITY = Node("constant", "infinity")
INFINITE = {INFINITY: 1, Node("negate", parts=(INFINITY,)): -1}


def quantity(tokens: Tokens) -> Answer:
    """Some tokens as a number or an expression with its unit; as a `Spelling` if they are none."""
    bare, money = currency(tokens)
    unit = behind(bare)
    if unit is not None:
        try:
            factor, of = multiple(unit[1])
            node = parse(bare[: unit[0]])
            node = node if factor == 1 else Node("multiply", parts=(node, number(factor)))
            return _both_signs(node, _of_money(money, of) if money else of)
        except UnreadError:
            pass
    try:
        node = parse(bare)
    except UnreadError:
        return _beside(tokens)
    if node == Node("symbol", "\\mathbb{R}"):
        return Region(regions.EVERYTHING)
    if node.kind == "symbol" and is_word(node.name):
        return Words(node.name.casefold())
    return _both_signs(node, money)


def times(tokens: Tokens, table: Items) -> Items | None:
    """A matrix of quantities times what stands before it: a number, an expression, a sign; None if it is something else."""
    bare = [token for token in tokens if not is_sign(token, "\\cdot", "*")]
    factor = number(-1) if len(bare) == 1 and is_sign(bare[0], "-") else parse(bare)
    rows = []
    for row in table.items:
        if not isinstance(row, Items) or not all(isinstance(item, Quantity) for item in row.items):
            return None
        entries = (item.node for item in row.items if isinstance(item, Quantity))
        rows.append(Items("row", tuple(Quantity(Node("multiply", parts=(factor, entry))) for entry in entries)))
    return Items("matrix", tuple(rows))


def meant(answer: Answer) -> Answer:
    """Words that say a number, infinity or all real numbers as what they say."""
    if not isinstance(answer, Words):
        return answer
    if answer.text in ("infinity", "negative infinity"):
        return Quantity(INFINITY if answer.text == "infinity" else Node("negate", parts=(INFINITY,)))
    if answer.text == "all real numbers":
        return Region(regions.EVERYTHING)
    value = number_in_words(answer.text)
    return answer if value is None else Quantity(number(value))


def interval(ends: Sequence[Answer], brackets: str) -> Answer:
    """The interval between two quantities; one end may be infinite.

    Raises:
        UnreadError: there are not two ends, or one is no quantity.
    """
    if len(ends) != 2 or not all(isinstance(end, Quantity) for end in ends):
        raise UnreadError("an interval has two ends")
    nodes: list[Node | None] = []
    for end, outward in zip(ends, (-1, 1), strict=True):
        sign = infinite(end)
        if sign is not None and sign != outward:
            return Spelling("an interval that ends before it begins")
        nodes.append(end.node if sign is None and isinstance(end, Quantity) else None)
    low, high = nodes
    return regions.region([Interval(low, high, brackets[0] == "[" and low is not None, brackets[1] == "]" and high is not None)])


def infinite(answer: Answer) -> int | None:
    """1 for infinity, -1 for its opposite, None for everything else."""
    return INFINITE.get(answer.node) if isinstance(answer, Quantity) and not answer.unit else None


def _beside(tokens: Tokens) -> Answer:
    """Numbers with blanks between them; else only a spelling."""
    numbers = [token for token in tokens if not is_sign(token, ".")]
    if len(numbers) > 1 and all(token.kind == "number" for token in numbers):
        return Items("beside", tuple(Quantity(parse([token])) for token in numbers))
    if len(tokens) == 1 and is_sign(tokens[0], "\\ldots"):
        return Words("…")
    return Spelling(joined(tokens))


def _of_money(money: str, unit: str) -> str:
    return money if unit in ("", money, "unit") else f"{money} {unit}"


def _both_signs(node: Node, unit: str) -> Answer:
    r"""``a\pm b`` is two answers."""
    if not _has_either(node):
        return Quantity(node, unit)
    return Items("list", tuple(Quantity(_with_sign(node, sign), unit) for sign in (1, -1)))


def _has_either(node: Node) -> bool:
    return node.kind == "either" or any(map(_has_either, node.parts))


def _with_sign(node: Node, sign: int) -> Node:
    parts = tuple(_with_sign(part, sign) for part in node.parts)
    if node.kind == "either":
        return parts[0] if (sign > 0) == (node.name == "\\pm") else Node("negate", parts=parts)
    return replace(node, parts=parts)
