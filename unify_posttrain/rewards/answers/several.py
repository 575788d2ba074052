"""Several answers: lists, tuples, sets, matrices, and systems, which give values to names."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise as adjacent

from unify_posttrain.rewards.answers.values import Answer, Items, Named, Quantity, Words
from unify_posttrain.rewards.answers.verdicts import Same, Verdict, all_of, pairwise

_ROOTS = re.compile(r"([xzrtyk]|\\lambda)_\d+")
_UNORDERED = frozenset({"set", "list", "union", "any", "all", "cases"})
ELLIPSIS = Words("…")


def several(left: Items, right: Items, same: Same) -> Verdict:
    """Whether as many answers on both sides are equal: order counts in tuples, intervals, matrices, not in sets and bare lists."""
    if left.kind == right.kind == "tuple" and left.brackets != right.brackets:
        return False
    if left.kind == right.kind:
        if left.kind == "list" and (named := _systems(left, right, same)) is not NotImplemented:
            return named
        if any(item == ELLIPSIS for item in (*left.items, *right.items)):
            return _with_dots(left.items, right.items, same)
        ordered = left.kind not in _UNORDERED or _in_sequence(left.items) or _in_sequence(right.items)
        return pairwise(left.items, right.items, ordered, same)
    kinds = {left.kind, right.kind}
    if kinds == {"set", "list"}:
        return pairwise(_values(left), _values(right), False, same)
    if kinds == {"tuple", "list"}:
        if len(left.items) != len(right.items):
            return False
        return pairwise(_values(left), _values(right), True, same)
    if kinds == {"matrix", "tuple"}:
        return None
    return False


def _in_sequence(items: Sequence[Answer]) -> bool:
    """Whether words or letters come more than once, as in T, F, T: then their order is the answer."""
    words = all(isinstance(item, Words) or (isinstance(item, Quantity) and item.node.kind == "symbol") for item in items)
    return words and len(set(items)) < len(items)


def _with_dots(left: Sequence[Answer], right: Sequence[Answer], same: Same) -> Verdict:
    """Sequences with dots: the same before and after them; one may say more of its beginning, if that has even steps."""
    heads, tails = [], []
    for items in (left, right):
        if items.count(ELLIPSIS) != 1:
            return pairwise(left, right, True, same)
        place = items.index(ELLIPSIS)
        heads.append(list(items[:place]))
        tails.append(list(items[place + 1 :]))
    short, long = sorted(heads, key=len)
    extra = long[len(short) :]
    verdict = all_of([pairwise(short, long[: len(short)], True, same), pairwise(*tails, True, same)])
    if verdict is False or not extra:
        return verdict
    return verdict if short and _even_steps(long, first=len(short) == 1) else False


def _even_steps(items: Sequence[Answer], first: bool) -> bool:
    """Whether numbers, or the indices of one name, go on in steps of one size; of size 1 if there is but one `first` to go by."""
    values = [_place(item) for item in items]
    if any(value is None or value[0] != values[0][0] for value in values if values[0] is not None) or values[0] is None:
        return False
    steps = {b[1] - a[1] for a, b in adjacent(values) if a is not None and b is not None}
    return len(steps) == 1 and (not first or steps == {1})


def _place(item: Answer) -> tuple[str, Fraction] | None:
    if not isinstance(item, Quantity):
        return None
    if item.node.kind == "number":
        return "", item.node.value
    match = re.fullmatch(r"(.+)_(\d+)", item.node.name)
    return (match[1], Fraction(match[2])) if match else None


def _systems(left: Items, right: Items, same: Same) -> Verdict:
    """Lists of which one or both give values to names."""
    named = [all(isinstance(item, Named) for item in items.items) for items in (left, right)]
    if not any(named):
        return NotImplemented
    if not all(named):
        return pairwise(_values(left), _values(right), not any(_of_roots(items) for items in (left, right)), same)
    if len(left.items) != len(right.items):
        return False
    if _of_roots(left) and _of_roots(right):
        return pairwise(_values(left), _values(right), False, same)
    names = [[item.name for item in items.items if isinstance(item, Named)] for items in (left, right)]
    if sorted(names[0]) != sorted(names[1]):
        return None if any("=" in name for each in names for name in each) else pairwise(left.items, right.items, False, same)
    return pairwise(_by_name(left), _by_name(right), True, same)


def _of_roots(items: Items) -> bool:
    """Whether its names only number the values of one unknown: x_1 and x_2."""
    names = [item.name.replace("{", "").replace("}", "") for item in items.items if isinstance(item, Named)]
    found = [_ROOTS.fullmatch(name) for name in names]
    return len(names) == len(items.items) and all(found) and len({match[1] for match in found if match}) == 1


def _by_name(items: Items) -> tuple[Answer, ...]:
    return tuple(sorted(items.items, key=lambda item: _rank(item.name) if isinstance(item, Named) else ("", "")))


def _rank(name: str) -> tuple[str, str]:
    """Alphabetical, but w, if it names a coordinate, comes behind z."""
    return ("z" if name == "w" else name, name if name != "w" else "zz")


def _values(items: Items) -> tuple[Answer, ...]:
    """Without names, those in alphabetical order."""
    if items.kind != "list" or not all(isinstance(item, Named) for item in items.items):
        return items.items
    ordered = items.items if _of_roots(items) else _by_name(items)
    return tuple(item.value for item in ordered if isinstance(item, Named))
