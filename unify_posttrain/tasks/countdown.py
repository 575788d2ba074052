"""Countdown: make a target from given numbers, each used once, with + - * / (TinyZero; UFT, arXiv 2505.16984).

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

Difficulty is how many numbers there are; files and splits are described in `unify_posttrain.tasks.files`. The verifier
knows nothing of all this: it takes every formula that is right.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.tasks import files
from unify_posttrain.tasks.formula import FormulaError, evaluate

LEVEL = files.Level("numbers", "count of numbers", minimum=3, maximum=6)
MAX_LARGEST = 20  # all problems of a count are listed to draw from them: seconds up to here, hours beyond
TRIES = 3
OPERATIONS = "+-*/"
SCHEMA = files.schema(numbers=pa.int64(), tries=pa.int64())
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt

_MARKER = "answer"
_TRUTH_KEYS = {"numbers", "target"}


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
        if guess is None:
            operation = attempt.operation(target)
        else:
            operation = guess[1] if number == guess[0] else None
        if operation is not None:
            return "\n".join([*lines, f"{_MARKER} {attempt.formula(operation)}"])
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


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Check the answer exactly; verl's reward-function signature.

    The score is 1.0 only if the word ``answer`` occurs once, at the start of a line, followed by one space and a formula
    that :func:`formula.evaluate` accepts, its value is the target, it uses exactly the given numbers, each as often as
    given, and the text ends there. The working above is not checked: the reward is for the outcome.

    Linear in ``len(solution_str)``; no string makes it raise.

    Args:
        ground_truth: JSON text {"numbers": [int, ...], "target": int}.

    Returns:
        ``{"score": 1.0 | 0.0, "acc": 1.0 | 0.0}``, equal to each other.

    Raises:
        TypeError, ValueError: ``ground_truth`` is not such a text, which is a defect of the data and not of the answer.
    """
    target, numbers = _parse_truth(data_source, ground_truth)
    before, _found, after = solution_str.rpartition(f"{_MARKER} ")
    score = 0.0
    if solution_str.count(_MARKER) == 1 and (before == "" or before.endswith("\n")):
        try:
            formula = evaluate(after)
            score = float(formula.value == target and formula.numbers == numbers)
        except FormulaError:
            pass
    return {"score": score, "acc": score}


def _parse_truth(data_source: str, ground_truth: str) -> tuple[int, tuple[int, ...]]:
    where = f"reward_model.ground_truth of data_source={data_source!r}"
    remedy = 'give JSON text such as {"numbers": [8, 3, 5], "target": 29}, or rebuild the data with write_splits'
    if not isinstance(ground_truth, str):
        raise TypeError(f"{where} must be text, got {type(ground_truth).__name__}; {remedy}")
    try:
        truth = json.loads(ground_truth)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}={ground_truth!r} is no JSON ({error}); {remedy}") from None
    if not isinstance(truth, dict) or set(truth) != _TRUTH_KEYS or not isinstance(truth["numbers"], list):
        raise ValueError(f"{where}={ground_truth!r}; {remedy}")
    if any(type(number) is not int for number in (truth["target"], *truth["numbers"])):
        raise ValueError(f"{where}={ground_truth!r} holds something else than whole numbers; {remedy}")
    return truth["target"], tuple(sorted(truth["numbers"]))


def _check_largest(largest: Any) -> int:
    if type(largest) is not int or not 2 <= largest <= MAX_LARGEST:
        raise ValueError(f"largest={largest!r}: give the largest number of a problem, an integer from 2 to {MAX_LARGEST}")
    return largest


def _row(_count: int, problem: Problem) -> files.Row:
    truth = json.dumps({"numbers": problem.numbers, "target": problem.target})
    text, solution = question(problem.target, problem.numbers), worked_solution(problem.target, problem.numbers)
    return files.make_row("countdown", text, solution, truth, numbers=len(problem.numbers), tries=problem.tries)


def build_rows(split_settings: Mapping[str, Any], largest: int, seed: int) -> list[files.Row]:
    """Draw the rows of all splits, train rows first; equal arguments give equal rows.

    Args:
        split_settings: {easy|hard|ood: {numbers: list of counts of numbers, train: rows, test: rows}}.
        largest: the largest number of a problem.
        seed: of the draw.

    Returns:
        One mapping per row with the columns of :data:`SCHEMA`. No problem occurs twice, be it within a file or across
        train and test. A third of each count's problems is solved at each of the three tries.

    Raises:
        ValueError: unknown split, a count of numbers out of range, an ``ood`` split that is trained on or has no more
            numbers than the others, or more rows than distinct problems; the message names key, value and remedy.
    """
    _check_largest(largest)

    def available(count: int) -> int:
        return TRIES * min(map(len, list_problems(count, largest)))

    def draw(generator: random.Random, count: int, rows: int) -> list[Problem]:
        by_tries = list_problems(count, largest)
        drawn = [generator.sample(by_tries[t], len(range(t, rows, TRIES))) for t in range(TRIES)]
        return [drawn[i % TRIES][i // TRIES] for i in range(rows)]

    return files.build_rows("countdown", split_settings, seed, LEVEL, available, draw, _row)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match ``settings``.

    Args:
        folder: made if missing.
        settings: {seed: int, largest: int, splits: see :func:`build_rows`}; ``name`` and ``folder`` may be there and are
            ignored.

    Returns:
        {"train": path, "test": path}.

    Raises:
        ValueError: unknown or missing keys, or settings that :func:`build_rows` refuses.
    """
    settings = files.row_settings("countdown", settings, ("seed", "largest", "splits"))
    identity = {"format": MANIFEST_FORMAT, "settings": settings}
    return files.write_files(
        folder, identity, SCHEMA, lambda: build_rows(settings["splits"], settings["largest"], settings["seed"])
    )


class PretrainingExamples:
    """Problems to pretrain a base model with, drawn afresh; the draw does not know the test file.

    Args:
        settings: ``largest``; ``numbers`` {count of numbers: share of the examples}; ``careless`` {count of numbers: share
            of its examples that guess}; ``stops``, the shares of guesses made at the first, second and third try; keys may
            be strings, as JSON makes them.

    Raises:
        ValueError: a share or ``largest`` out of range, or a share of a count that is none.
    """

    KEYS = ("largest", "numbers", "careless", "stops")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.largest = _check_largest(settings["largest"])
        self.shares, self.careless = files.shares_by_level(LEVEL, settings)
        self.stops = list(settings["stops"])
        if len(self.stops) != TRIES or min(self.stops) < 0 or sum(self.stops) <= 0:
            raise ValueError(f"pretraining.stops={self.stops}: give {TRIES} shares >= 0, one above 0")

    @property
    def longest(self) -> tuple[str, str]:
        """The question and the worked solution that have the most characters, or a few more than these."""
        numbers = (self.largest,) * max(self.shares)
        target = self.largest * (1 + self.largest * (len(numbers) - 2))
        tries = search_tries(numbers)
        lines = [*_adding_up(target, numbers), *(attempt.line(target) for attempt in tries)]
        return question(target, numbers), "\n".join([*lines, f"{_MARKER} {tries[-1].formula('*')}"])

    def draw(self, generator: random.Random, count: int) -> list[tuple[str, str]]:
        """``count`` pairs of a question and a solution."""
        examples = []
        for numbers in generator.choices(list(self.shares), weights=list(self.shares.values()), k=count):
            problem = generator.choice(generator.choice(list_problems(numbers, self.largest)))
            guess = None
            if generator.random() < self.careless.get(numbers, 0.0):
                guess = generator.choices(range(1, TRIES + 1), weights=self.stops)[0], generator.choice("+-*")
            solution = worked_solution(problem.target, problem.numbers, guess)
            examples.append((question(problem.target, problem.numbers), solution))
        return examples
