"""Sums of two non-negative integers with worked solutions: a complete task without a download.

Simplified on purpose: both operands have the same number of digits, the working is one fixed-width line per digit
(so that a character-level model of half a million weights learns it), and only the final answer is checked.

    question          58+67=
    worked solution   8+7+0=15        least significant digits, carry in (0), two-digit sum
                      5+6+1=12        its tens digit is the carry of the next line
                      answer 125

Difficulty is the number of digits; files and splits are described in `unify_posttrain.tasks.files`.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.tasks import files
from unify_posttrain.tasks.answer import MARKER, final_answer, outcome

LEVEL = files.Level("digits", "digit count", minimum=1)
SCHEMA = files.schema(digits=pa.int64())
MANIFEST_FORMAT = 2  # raise it when the rows for equal settings change: old folders are then rebuilt
MAX_ANSWER_DIGITS = 64

_ANSWER = re.compile(rf"0|[1-9][0-9]{{0,{MAX_ANSWER_DIGITS - 1}}}")  # [0-9], since \d accepts non-ASCII digits


def question(a: int, b: int) -> str:
    """The user message that asks for ``a + b``."""
    return f"{a}+{b}="


def worked_solution(a: int, b: int, careless: bool = False) -> str:
    """The demonstration for ``a + b``: 9 characters per digit of the longer operand, then ``answer <sum>``.

    With ``careless`` the carries are forgotten, so 58+67 gives 115 and only sums that need none come out right: a bad
    habit to pretrain a base model with, never a demonstration.

    Raises:
        ValueError: an operand is negative.
    """
    if a < 0 or b < 0:
        raise ValueError(f"operands must be non-negative, got a={a}, b={b}")
    width = max(len(str(a)), len(str(b)))
    lines, carry, digits = [], 0, ""
    for digit_a, digit_b in zip(reversed(f"{a:0{width}d}"), reversed(f"{b:0{width}d}"), strict=True):
        total = int(digit_a) + int(digit_b) + carry
        # Always two digits: in lines of one width every digit stands at a regular distance, which tiny models learn.
        lines.append(f"{digit_a}+{digit_b}+{carry}={total:02d}")
        digits = f"{total % 10}{digits}"
        carry = 0 if careless else total // 10
    return "\n".join([*lines, f"{MARKER} {int(f'{total // 10}{digits}')}"])


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Check the final answer exactly; verl's reward-function signature.

    The score is 1.0 only if the word ``answer`` occurs once, at the start of a line, followed by one space and a number
    equal to ``ground_truth``, and the text ends there. Hence 0.0 for: no answer; several answers (no hedging), right or
    wrong; a leading zero or sign; non-ASCII digits; anything after the number, a newline included (the policy has to
    stop by itself); more than 64 digits. The working above is not checked: the reward is for the outcome.

    Linear in ``len(solution_str)``; no string makes it raise.

    Returns:
        ``{"score": 1.0 | 0.0, "acc": 1.0 | 0.0}``, equal to each other.

    Raises:
        TypeError: ``ground_truth`` is not a string, which is a defect of the data and not of the answer.
    """
    if not isinstance(ground_truth, str):
        raise TypeError(
            f"reward_model.ground_truth of data_source={data_source!r} must be a string of digits, "
            f"got {type(ground_truth).__name__}; rebuild the data with write_splits"
        )
    answer = final_answer(solution_str)
    return outcome(answer is not None and _ANSWER.fullmatch(answer) is not None and answer == ground_truth)


def operand_range(digits: int) -> range:
    """All numbers with ``digits`` digits; 0 counts as a number of one digit. ValueError if ``digits`` < 1."""
    if digits < 1:
        raise ValueError(f"digits={digits!r}: a number has at least 1 digit; give an integer >= 1")
    return range(0 if digits == 1 else 10 ** (digits - 1), 10**digits)


def count_problems(digits: int) -> int:
    """Number of distinct sums with operands of ``digits`` digits, a+b and b+a being the same problem."""
    size = len(operand_range(digits))
    return size * (size + 1) // 2


def _problem(rank: int, operands: range) -> tuple[int, int]:
    """The ``rank``-th unordered pair (larger, smaller), i.e. the inverse of rank = i(i+1)/2 + j with j <= i."""
    i = (math.isqrt(8 * rank + 1) - 1) // 2
    return operands[i], operands[rank - i * (i + 1) // 2]


def _draw(generator: random.Random, digits: int, count: int) -> list[tuple[int, int]]:
    operands = operand_range(digits)
    # Sampling ranks of unordered pairs without replacement makes all of them distinct at once.
    pairs = (_problem(rank, operands) for rank in generator.sample(range(count_problems(digits)), count))
    return [pair if generator.random() < 0.5 else pair[::-1] for pair in pairs]


def _row(digits: int, problem: tuple[int, int]) -> files.Row:
    a, b = problem
    return files.make_row("arithmetic", question(a, b), worked_solution(a, b), str(a + b), digits=digits)


def build_rows(split_settings: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Draw the rows of all splits, train rows first; equal arguments give equal rows.

    Args:
        split_settings: {easy|hard|ood: {digits: list of digit counts, train: rows, test: rows}}.
        seed: of the draw.

    Returns:
        One mapping per row with the columns of :data:`SCHEMA`. No problem occurs twice, be it within a file, across
        train and test, or with its operands exchanged. ``extra_info.split`` is ``train`` or ``test``.

    Raises:
        ValueError: unknown split, digits < 1, an ``ood`` split that is trained on or not longer than the others, or
            more rows than distinct problems; the message names key, value and remedy.
    """
    return files.build_rows("arithmetic", split_settings, seed, LEVEL, count_problems, _draw, _row)


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match ``settings``.

    Args:
        folder: made if missing.
        settings: {seed: int, splits: see :func:`build_rows`}; ``name`` and ``folder`` may be there and are ignored.

    Returns:
        {"train": path, "test": path}.

    Raises:
        ValueError: unknown or missing keys, or settings that :func:`build_rows` refuses.
    """
    settings = files.row_settings("arithmetic", settings, ("seed", "splits"))
    identity = {"format": MANIFEST_FORMAT, "settings": settings}
    return files.write_files(folder, identity, SCHEMA, lambda: build_rows(settings["splits"], settings["seed"]))


class PretrainingExamples:
    """Sums to pretrain a base model with, drawn afresh; the draw does not know the test file.

    Args:
        settings: ``digits`` {digit count: share of the examples}, ``careless`` {digit count: share of its examples that
            forget the carries}; keys may be strings, as JSON makes them.

    Raises:
        ValueError: a share out of range, or of a digit count that is none.
    """

    KEYS = ("digits", "careless")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.shares, self.careless = files.shares_by_level(LEVEL, settings)

    @property
    def longest(self) -> tuple[str, str]:
        """The question and the worked solution that have the most characters."""
        largest = 10 ** max(self.shares) - 1
        return question(largest, largest), worked_solution(largest, largest)

    def draw(self, generator: random.Random, count: int) -> list[tuple[str, str]]:
        """``count`` pairs of a question and a solution."""
        digits = generator.choices(list(self.shares), weights=list(self.shares.values()), k=count)
        problems = [(generator.choice(operand_range(d)), generator.choice(operand_range(d))) for d in digits]
        slips = [generator.random() < self.careless.get(d, 0.0) for d in digits]
        return [(question(a, b), worked_solution(a, b, careless=slip)) for (a, b), slip in zip(problems, slips, strict=True)]
