"""All formulas that reach a target: every order of the numbers, every operator, every bracket shape, in whole arrays at once.

Brackets come in seven shapes for four numbers (none, `(ab)cd`, `(abc)d`, `a(bc)d`, `a(bcd)`, `ab(cd)`, `(ab)(cd)`), three for
three. They lose no hand: whatever can be reached by combining any two numbers is reached by one of them. What a text means under
the precedence of its operators is one of five binary trees, so the trees are computed once, exactly, in fractions of integers, and
every text looks its value up.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

OPERATORS = "+-*/"
SHAPES = {
    2: ("ab",),
    3: ("abc", "(ab)c", "a(bc)"),
    4: ("abcd", "(ab)cd", "(abc)d", "a(bc)d", "a(bcd)", "ab(cd)", "(ab)(cd)"),
}
CHUNK = 4096  # orders of numbers computed at a time: some tens of megabytes
KEPT = 4096  # hands whose formulas are remembered: more than there are multisets of four values

Tree = Any  # a leaf is its position, a node (left, operator's position, right)
Fractions = tuple[np.ndarray, np.ndarray]  # numerator, denominator; 0 in the denominator: not defined


@dataclass(frozen=True)
class Solutions:
    """The formulas of a hand, without blanks and without `=`.

    Attributes:
        texts: in the order of the search.
        ordered: the same, sorted, so that a beginning is found by halving.
    """

    texts: tuple[str, ...]
    ordered: tuple[str, ...]

    def shared_beginning(self, text: str) -> str:
        """The longest beginning of ``text`` that some formula has, too."""
        place = bisect_left(self.ordered, text)
        return max((_common(text, near) for near in self.ordered[max(place - 1, 0) : place + 1]), key=len, default="")


def _common(first: str, second: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))
    return first[:length]


def solve(values: Iterable[int], target: int) -> Solutions:
    """Every formula over distinct orders of ``values`` that is exactly ``target``.

    >>> solve((3, 3, 8, 8), 24).texts
    ('8/(3-8/3)',)
    """
    return _solve(tuple(sorted(values)), target)


@lru_cache(maxsize=KEPT)
def _solve(values: tuple[int, ...], target: int) -> Solutions:
    orders = sorted(set(itertools.permutations(values)))
    trees, table = _forms(len(values))
    hits = [_hits(tree, np.array(orders), target) for tree in trees]
    texts = []
    for shape, by_operators in zip(SHAPES[len(values)], table, strict=True):
        for number, tree in enumerate(by_operators):
            signs = _operators(number, len(values) - 1)
            texts += [_write(shape, orders[row], signs) for row in np.flatnonzero(hits[tree][:, number])]
    return Solutions(tuple(texts), tuple(sorted(texts)))


def playable(hands: Sequence[tuple[int, ...]], target: int) -> np.ndarray:
    """Whether each hand's values reach ``target``.

    Args:
        hands: of equally many values each.

    Returns:
        (hands,) bool.
    """
    if not hands:
        return np.zeros(0, dtype=bool)
    orders = [(row, order) for row, hand in enumerate(hands) for order in set(itertools.permutations(hand))]
    found = np.zeros(len(hands), dtype=bool)
    for begin in range(0, len(orders), CHUNK):
        part = orders[begin : begin + CHUNK]
        numbers = np.array([order for _, order in part])
        reached = np.zeros(len(part), dtype=bool)
        for tree in _forms(len(hands[0]))[0]:
            reached |= _hits(tree, numbers, target).any(axis=1)
        found[np.array([row for row, _ in part])[reached]] = True
    return found


@lru_cache(maxsize=64)
def playable_values(largest: int, count: int, target: int) -> frozenset[tuple[int, ...]]:
    """The sorted values from 1 to ``largest`` that reach ``target``."""
    hands = list(itertools.combinations_with_replacement(range(1, largest + 1), count))
    return frozenset(itertools.compress(hands, playable(hands, target)))


def _hits(tree: Tree, numbers: np.ndarray, target: int) -> np.ndarray:
    """(orders, 4 ** operators) bool: where the tree is the target."""
    above, below = _evaluate(tree, numbers)
    operators = numbers.shape[1] - 1
    hit = (above == target * below) & (below != 0)
    return hit.reshape(len(numbers), len(OPERATORS) ** operators)


def _evaluate(tree: Tree, numbers: np.ndarray) -> Fractions:
    """Values of a tree for all operators: axis 0 is the order of the numbers, axis k + 1 the operator at position k."""
    operators = numbers.shape[1] - 1
    if isinstance(tree, int):
        leaf = numbers[:, tree].astype(np.int64).reshape(-1, *(1,) * operators)
        return leaf, np.ones_like(leaf)
    left, position, right = tree
    (a, b), (c, d) = _evaluate(left, numbers), _evaluate(right, numbers)
    # Dividing by something undefined must not make it defined again.
    above = (a * d + c * b, a * d - c * b, a * c, a * d)
    below = (b * d, b * d, b * d, np.where(d == 0, 0, b * c))
    axis = position + 1
    return np.concatenate(np.broadcast_arrays(*above), axis), np.concatenate(np.broadcast_arrays(*below), axis)


@lru_cache(maxsize=len(SHAPES))
def _forms(count: int) -> tuple[list[Tree], list[list[int]]]:
    """The binary trees of ``count`` numbers, and per shape and choice of operators the tree that the text means."""
    trees: list[Tree] = []
    table = []
    for shape in SHAPES[count]:
        row = []
        for number in range(len(OPERATORS) ** (count - 1)):
            tree = _parse(shape, _operators(number, count - 1))
            if tree not in trees:
                trees.append(tree)
            row.append(trees.index(tree))
        table.append(row)
    return trees, table


def _operators(number: int, count: int) -> str:
    """The operators that an index along the flattened axes stands for."""
    return "".join(OPERATORS[number // len(OPERATORS) ** (count - 1 - place) % len(OPERATORS)] for place in range(count))


def _write(shape: str, numbers: Iterable[object], operators: str) -> str:
    """A shape with its numbers and operators.

    >>> _write("a(bc)d", [1, 2, 3, 4], "+*-")
    '1+(2*3)-4'
    """
    text, written, pending = "", iter(operators), iter(numbers)
    for sign in shape:
        if sign != ")" and text and not text.endswith("("):
            text += next(written)
        text += sign if sign in "()" else str(next(pending))
    return text


def _parse(shape: str, operators: str) -> Tree:
    """The tree of a shape, by precedence: `*` and `/` bind before `+` and `-`, equals from the left."""
    outputs: list[Tree] = []
    pending: list[tuple[str, int]] = []  # open brackets, and operators with their position

    def join() -> None:
        right, left = outputs.pop(), outputs.pop()
        outputs.append((left, pending.pop()[1], right))

    seen = 0
    for sign in _write(shape, range(len(operators) + 1), operators):
        if sign.isdigit():
            outputs.append(seen)
            seen += 1
        elif sign == "(":
            pending.append((sign, -1))
        elif sign == ")":
            while pending[-1][0] != "(":
                join()
            pending.pop()
        else:
            while pending and pending[-1][0] != "(" and (pending[-1][0] in "*/" or sign in "+-"):
                join()
            pending.append((sign, seen - 1))
    while pending:
        join()
    return outputs[0]
