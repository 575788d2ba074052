"""The search that solves a Countdown problem, its worked solution, and the list of all problems that it solves.

Simplified on purpose: the problems are those that one systematic search solves, and a character-level model of half a
million weights can carry it out, as every line is a smaller problem than the one before. The last numbers are added up
until three are left; each of these in turn is taken off the target, until one operation makes the rest of the other two.

    question          29:8 3 3 2           target, then the numbers in falling order
    worked solution   29:8 3 5             3+2=5
                      24:8 3               without the 5; is 24 made from 8 and 3? Yes, 8*3
                      answer 8*3+(3+2)
    question          29:8 7 3             3 numbers: nothing to add up
    worked solution   26:8 7               without the 3, but 8+7, 8-7, 8*7 and 8/7 are not 26
                      22:8 3               without the 7
                      21:7 3               without the 8
                      answer 7*3+8
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

from unify_posttrain.tasks.answer import MARKER

TRIES = 3
OPERATIONS = "+-*/"


@dataclass(frozen=True)
class Problem:
    """``target`` from ``numbers`` (falling), which the search finds at its ``tries``-th try, counted from 1."""

    target: int
    numbers: tuple[int, ...]
    tries: int


@dataclass(frozen=True)
class Try:
    """One line of the search: take ``taken`` off the target and look at the other two, ``left`` >= ``right``.

    The three are (value, text) pairs; the text is the number, or the sum that was added up, in parentheses.
    """

    taken: tuple[int, str]
    left: tuple[int, str]
    right: tuple[int, str]

    def value(self, operation: str) -> int | None:
        """``left operation right``, or None for a division with a remainder."""
        x, y = self.left[0], self.right[0]
        if operation == "/":
            return x // y if x % y == 0 else None
        return {"+": x + y, "-": x - y, "*": x * y}[operation]

    def line(self, target: int) -> str:
        """As the worked solution shows it."""
        return question(target - self.taken[0], (self.left[0], self.right[0]))

    def formula(self, operation: str) -> str:
        """The answer, if this try is right with ``operation``."""
        return f"{self.left[1]}{operation}{self.right[1]}+{self.taken[1]}"

    def operation(self, target: int) -> str | None:
        """The first operation that makes the try right, if there is one."""
        return next((op for op in OPERATIONS if self.value(op) == target - self.taken[0]), None)


def question(target: int, numbers: Sequence[int]) -> str:
    """The user message that asks for ``target`` from ``numbers``."""
    return f"{target}:{' '.join(map(str, numbers))}"


def search_tries(numbers: Sequence[int]) -> tuple[Try, ...]:
    """The three tries in their order.

    Raises:
        ValueError: fewer than 3 numbers, one below 1, or numbers that are not in falling order.
    """
    if len(numbers) < 3 or min(numbers) < 1 or list(numbers) != sorted(numbers, reverse=True):
        raise ValueError(f"numbers={list(numbers)}: give at least 3 positive numbers in falling order")
    last = "+".join(map(str, numbers[2:]))
    sum_of_last = (sum(numbers[2:]), last if len(numbers) == 3 else f"({last})")
    three = [(numbers[0], str(numbers[0])), (numbers[1], str(numbers[1])), sum_of_last]
    tries = []
    for taken in (2, 1, 0):
        left, right = sorted(three[:taken] + three[taken + 1 :], key=lambda item: item[0], reverse=True)
        tries.append(Try(three[taken], left, right))
    return tuple(tries)


def _adding_up(target: int, numbers: Sequence[int]) -> list[str]:
    """The lines that add up the last two numbers until three are left; none if there are only three."""
    left, lines = list(numbers), []
    while len(left) > 3:
        left[-2:] = [left[-2] + left[-1]]
        lines.append(question(target, left))
    return lines


def worked_solution(target: int, numbers: Sequence[int], guess: tuple[int, str] | None = None) -> str:
    """The demonstration: sums, tries up to the right one, and ``answer <formula>``.

    With ``guess`` = (try, operation) it stops at that try (counted from 1) and answers with that operation, right or
    wrong: a bad habit to pretrain a base model with, never a demonstration.

    Raises:
        ValueError: the search does not find ``target``, or ``numbers`` are not as :func:`search_tries` needs them.
    """
    tries = search_tries(numbers)
    lines = _adding_up(target, numbers)
    for number, attempt in enumerate(tries, start=1):
        lines.append(attempt.line(target))
        stop, operation = guess or (number, attempt.operation(target))
        if number == stop and operation is not None:
            return "\n".join([*lines, f"{MARKER} {attempt.formula(operation)}"])
    raise ValueError(f"target={target}: no try finds it with numbers={list(numbers)}; choose one out of list_problems")


@lru_cache(maxsize=16)
def list_problems(count: int, largest: int) -> tuple[tuple[Problem, ...], ...]:
    """All problems with ``count`` numbers from 1 to ``largest``, those solved at the first try first, then second, third.

    None has a target below one of the three terms of its search, so no try shows a negative number.
    """
    found: tuple[list[Problem], ...] = tuple([] for _ in range(TRIES))
    for numbers in combinations_with_replacement(range(largest, 0, -1), count):
        tries = search_tries(numbers)
        seen: set[int] = set()
        lowest = max(tries[0].taken[0], tries[0].left[0])
        for number, attempt in enumerate(tries):
            values = (attempt.value(operation) for operation in OPERATIONS)
            targets = sorted({attempt.taken[0] + value for value in values if value is not None} - seen)
            seen.update(targets)
            found[number].extend(Problem(target, numbers, number + 1) for target in targets if target >= lowest)
    return tuple(map(tuple, found))
