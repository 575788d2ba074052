"""Texts with =, <, \\le, \\in, \\equiv: named values, chains, equations, inequalities, memberships, congruences."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from unify_posttrain.rewards.answers.algebra import same_expression
from unify_posttrain.rewards.answers.evaluation import symbols
from unify_posttrain.rewards.answers.expressions import parse
from unify_posttrain.rewards.answers.near import near
from unify_posttrain.rewards.answers.nodes import Node
from unify_posttrain.rewards.answers.regions import solved
from unify_posttrain.rewards.answers.tokens import Tokens, UnreadError, closing, is_sign, joined, outside, split, trimmed
from unify_posttrain.rewards.answers.values import Answer, Congruence, Items, Named, Quantity, Region, Relation, Spelling

APPROXIMATE = 0.02  # how far, of itself, a number may be from what is called its approximation
Read = Callable[[Tokens], Answer]

_TURNED = {">": "<", "\\ge": "\\le"}
_ORDER = frozenset({"<", ">", "\\le", "\\ge", "\\ne"})


def related(tokens: Tokens, read: Read) -> Answer | None:
    """An answer with a relation in it; None: it has none."""
    signs = [token.text for _, token in outside(tokens) if token.kind in ("sign", "command")]
    if "\\pmod" in signs or "\\equiv" in signs or "\\bmod" in signs:
        return congruence(tokens)
    if "\\perp" in signs or "\\parallel" in signs:
        return of_lines(tokens)
    if "\\mapsto" in signs:
        name, value = split(tokens, lambda token: is_sign(token, "\\mapsto"))[:2]
        return Named(joined(name), read(value))
    if "\\in" in signs:
        name, of = [*split(tokens, lambda token: is_sign(token, "\\in")), []][:2]
        return Named(joined(name), _with_variable(read(of), joined(name))) if of and len(name) <= 4 else None
    if "\\approx" in signs:
        return approximate(tokens, read)
    if _ORDER & set(signs):
        return inequality(tokens)
    if "=" in signs:
        return equation(tokens, read)
    return None


def _with_variable(answer: Answer, name: str) -> Answer:
    return replace(answer, variable=name) if isinstance(answer, Region) and not answer.variable else answer


def congruence(tokens: Tokens) -> Answer:
    r"""`x \equiv 3 \pmod 5`, `3 \pmod{5}`."""
    place = next((index for index, token in outside(tokens) if is_sign(token, "\\pmod", "\\bmod", "\\mod")), None)
    if place is None:
        return Spelling(joined(tokens))
    value = split(tokens[:place], lambda token: is_sign(token, "\\equiv", "="))
    modulus = trimmed([token for token in tokens[place + 1 :] if not is_sign(token, ".")])
    if modulus and modulus[0].text == "(" and closing(modulus, 0) == len(modulus) - 1:
        modulus = modulus[1:-1]
    try:
        return Congruence(
            parse(trimmed([t for t in value[-1] if t.text != "("] if value[-1][-1:] and value[-1][-1].text == "(" else value[-1])),
            parse(modulus),
        )
    except (UnreadError, IndexError):
        return Spelling(joined(tokens))


def of_lines(tokens: Tokens) -> Answer:
    r"""`AB \perp CD`, in either order."""
    parts = split(tokens, lambda token: is_sign(token, "\\perp", "\\parallel"))
    nodes = [_node(part) for part in parts]
    if len(nodes) != 2 or nodes[0] is None or nodes[1] is None:
        return Spelling(joined(tokens))
    sign = "\\perp" if any(is_sign(token, "\\perp") for token in tokens) else "\\parallel"
    return Relation((nodes[0], nodes[1]), (sign,))


def approximate(tokens: Tokens, read: Read) -> Answer:
    r"""`x \approx 12.5` is 12.5, `\sqrt{17} \approx 4.12` the exact value."""
    parts = split(tokens, lambda token: is_sign(token, "\\approx"))
    if len(parts) < 2:
        return read(parts[0]) if parts else Spelling("")
    first = read(parts[0])
    if isinstance(first, Quantity) and not symbols(first.node):
        second = read(parts[-1])
        return first if near(first, second, APPROXIMATE) else Spelling(joined(tokens), contradictory=True)
    if isinstance(first, Named):
        return first
    return Named(joined(parts[0]), read(parts[-1]))


def inequality(tokens: Tokens) -> Answer:
    """A chain of inequalities: as the numbers of which it is true, if it has one unknown; else with < and \\le alone."""
    parts = split(tokens, lambda token: is_sign(token, *_ORDER, "="))
    signs = [token.text for _, token in outside(tokens) if is_sign(token, *_ORDER, "=")]
    if len(parts) != len(signs) + 1:
        return Spelling(joined(tokens))
    try:
        terms = tuple(parse(part) for part in parts)
    except UnreadError:
        return Spelling(joined(tokens))
    if all(sign in _TURNED or sign in ("=", "\\ne") for sign in signs) and any(sign in _TURNED for sign in signs):
        terms, signs = terms[::-1], [_TURNED.get(sign, sign) for sign in reversed(signs)]
    relation = Relation(terms, tuple(signs))
    return solved(relation) or relation


def equation(tokens: Tokens, read: Read) -> Answer:
    """A named value, an equation, or a chain of them: of a chain the last value, if no link of it is false."""
    parts = split(tokens, lambda token: is_sign(token, "="))
    if len(parts) < 2:
        return Spelling(joined(tokens))
    nodes = [_node(part) for part in parts]
    if len(parts) == 2:
        return _pair(tokens, parts, nodes, read)
    if (
        all(node is not None and node.kind == "symbol" for node in nodes[:-1])
        and len({joined(part) for part in parts[:-1]}) == len(parts) - 1
    ):
        return Items("list", tuple(Named(joined(part), read(parts[-1])) for part in parts[:-1]))  # x = y = 2
    for left, right in pairwise(nodes[1:]):
        if left is not None and right is not None and same_expression(left, right) is False:
            return Spelling(joined(tokens), contradictory=True)
    if nodes[0] is not None and nodes[1] is not None and not symbols(nodes[0]) and same_expression(nodes[0], nodes[1]) is False:
        return Spelling(joined(tokens), contradictory=True)
    return Named(joined(parts[0]), read(parts[-1]))


def _pair(tokens: Tokens, parts: list[Tokens], nodes: list[Node | None], read: Read) -> Answer:
    left, right = nodes
    if (names := _tuple_of_names(parts[0])) is not None:
        value = read(parts[1])
        if isinstance(value, Items) and value.kind == "tuple" and len(value.items) == len(names):
            return Items("list", tuple(Named(name, item) for name, item in zip(names, value.items, strict=True)))
        return value
    if left is not None and right is not None and not symbols(left) and not symbols(right) and left.kind != "call":
        if same_expression(left, right) is False:
            return Spelling(joined(tokens), contradictory=True)
        return read(parts[1])
    if is_name(parts[0], left):
        return Named(joined(parts[0]), read(parts[1]))
    if is_name(parts[1], right):
        return Named(joined(parts[1]), read(parts[0]))
    if left is not None and right is not None:
        if not symbols(right) and not _has_number(left):
            return Named(joined(parts[0]), read(parts[1]))
        return Relation((left, right), ("=",))
    if left is None and right is None:
        return Spelling(joined(tokens))
    value = read(parts[1])
    return Spelling(joined(tokens)) if isinstance(value, Spelling) else Named(joined(parts[0]), value)


def _node(tokens: Tokens) -> Node | None:
    try:
        return parse(tokens)
    except UnreadError:
        return None


def is_name(tokens: Tokens, node: Node | None) -> bool:
    """Whether something is what a value is given to: x, x_1, f(x), |z|, AB, a text."""
    if all(token.kind == "text" for token in tokens):
        return True
    if re.fullmatch(r"[A-Z]{2,}", joined(tokens)):
        return True
    if node is None:
        return len(tokens) == 2 and is_sign(tokens[0], "\\angle", "\\triangle")
    if node.kind in ("symbol", "call"):
        return True
    return node.kind == "function" and node.name in ("abs", "Re", "Im", "max", "min") and node.parts[0].kind == "symbol"


def _tuple_of_names(tokens: Tokens) -> list[str] | None:
    if len(tokens) < 5 or tokens[0].text != "(" or closing(tokens, 0) != len(tokens) - 1:
        return None
    parts = split(tokens[1:-1], lambda token: is_sign(token, ","))
    nodes = [_node(part) for part in parts]
    return [joined(part) for part in parts] if all(node is not None and node.kind == "symbol" for node in nodes) else None


def _has_number(node: Node) -> bool:
    parts = node.parts[:1] if node.kind in ("power", "call") or (node.kind == "function" and node.name == "root") else node.parts
    return node.kind == "number" or any(map(_has_number, parts))
