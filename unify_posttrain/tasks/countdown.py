"""Countdown: make a target from given numbers, each used once, with + - * / (TinyZero; UFT, arXiv 2505.16984).

Simplified on purpose: the problems are those that one short systematic search solves, and the demonstration is that search,
line by line (`unify_posttrain.tasks.countdown_search`). The verifier knows nothing of it: it takes every right formula.

    question          29:8 3 3 2
    worked solution   29:8 3 5
                      24:8 3
                      answer 8*3+(3+2)

Difficulty is how many numbers there are; files and splits are described in `unify_posttrain.tasks.files`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.tasks import files
from unify_posttrain.tasks.answer import final_answer, outcome
from unify_posttrain.tasks.countdown_search import TRIES, Problem, list_problems, question, worked_solution
from unify_posttrain.tasks.formula import FormulaError, evaluate

LEVEL = files.Level("numbers", "count of numbers", minimum=3, maximum=6)
MAX_LARGEST = 20  # all problems of a count are listed to draw from them: seconds up to here, hours beyond
SCHEMA = files.schema(numbers=pa.int64(), tries=pa.int64())
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt

_TRUTH_KEYS = {"numbers", "target"}


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
    answer = final_answer(solution_str)
    try:
        formula = None if answer is None else evaluate(answer)
    except FormulaError:
        formula = None
    return outcome(formula is not None and formula.value == target and formula.numbers == numbers)


def _parse_truth(data_source: str, ground_truth: str) -> tuple[int, tuple[int, ...]]:
    where = f"reward_model.ground_truth of data_source={data_source!r}"
    remedy = 'give JSON text such as {"numbers": [8, 3, 5], "target": 29}, or rebuild the data with write_splits'
    if not isinstance(ground_truth, str):
        raise TypeError(f"{where} must be text, got {type(ground_truth).__name__}; {remedy}")
    try:
        truth = json.loads(ground_truth)
    except (json.JSONDecodeError, RecursionError) as error:  # a hundred thousand brackets, say
        raise ValueError(f"{where}={ground_truth[:200]!r} is no JSON ({error}); {remedy}") from None
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
        return question(target, numbers), worked_solution(target, numbers, (TRIES, "*"))

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
