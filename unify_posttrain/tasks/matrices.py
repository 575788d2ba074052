"""Determinants and ranks of small integer matrices: a third task with a shift between training and test (arXiv 2509.12235).

    det     training 2x2 with entries -4 to 4; test `det_ood` 3x3 with entries -5 to 5, half of them symmetric; never 0
    rank    training 4x5; test `rank_ood` 5x4; products of two full-rank factors, so that every rank is as frequent

The answer is an integer under the key `answer`, in JSON or behind the key. The ground truth holds the matrix and the question, from
which the environment computes the answer. Rows: :mod:`unify_posttrain.tasks.matrix_rows`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from unify_posttrain.tasks.episodes import NODE, EpisodeSettings, number, own_settings
from unify_posttrain.tasks.turns import TurnEnvironment, Verdict, ground_truth
from unify_posttrain.untrusted.documents import DocumentError, parse

QUESTIONS = ("det", "rank")
OUTCOMES = ("right_answer", "wrong_answer", "no_answer")
TRUTH_KEYS = ("question", "matrix")
LARGEST = 12  # rows or columns that a ground truth may have
KEYS = ("rewards", "read_characters", "rank_turns")

_ANSWER = re.compile(r'"answer"\s*:\s*(-?[0-9]{1,18})(?![0-9.eE"])')


def determinant(matrix: Sequence[Sequence[int]]) -> int:
    """Exact determinant of a square matrix.

    >>> determinant([[2, -1, 0], [3, 4, 5], [-2, 1, 1]])
    11
    """
    reduced, sign, product = _reduced(matrix)
    return int(sign * product) if reduced == len(matrix) else 0


def rank(matrix: Sequence[Sequence[int]]) -> int:
    """Exact rank.

    >>> rank([[1, 2, 3, 4, 0], [2, 4, 6, 8, 0], [0, 0, 0, 0, 1], [1, 2, 3, 4, 1]])
    2
    """
    return _reduced(matrix)[0]


def _reduced(matrix: Sequence[Sequence[int]]) -> tuple[int, int, Fraction]:
    """Gauss in fractions: the rank, the sign of the row exchanges, and the product of the pivots."""
    rows = [[Fraction(entry) for entry in row] for row in matrix]
    found, sign, product = 0, 1, Fraction(1)
    for column in range(len(rows[0])):
        pivot = next((row for row in range(found, len(rows)) if rows[row][column]), None)
        if pivot is None:
            continue
        if pivot != found:
            rows[found], rows[pivot], sign = rows[pivot], rows[found], -sign
        product *= rows[found][column]
        for row in range(found + 1, len(rows)):
            factor = rows[row][column] / rows[found][column]
            rows[row] = [low - factor * high for low, high in zip(rows[row], rows[found], strict=True)]
        found += 1
        if found == len(rows):
            break
    return found, sign, product


def read_answer(text: str) -> int | None:
    """The integer of an answer: of its JSON, else the last one behind `"answer":`; a number in quotes or with a point is none.

    >>> read_answer('{"answer": 14,}'), read_answer("14"), read_answer('{"answer": 14.0}')
    (14, None, None)
    """
    if "{" in text:
        try:
            document = parse(text)
        except DocumentError:
            document = None
        if isinstance(document, dict):
            found = document.get("answer")
            return found if type(found) is int else None
    matches = _ANSWER.findall(text)
    return int(matches[-1]) if matches else None


class Matrices(TurnEnvironment):
    """See :class:`~unify_posttrain.tasks.environment.Environment`.

    Raises:
        ValueError: settings that are missing, unknown or of a wrong type.
    """

    OUTCOMES = OUTCOMES

    def __init__(self, settings: EpisodeSettings, own: Mapping[str, Any]) -> None:
        own_settings(own, KEYS)
        for key in ("read_characters", "rank_turns"):
            if type(own[key]) is not int or own[key] < 1:
                raise ValueError(f"{NODE}.{key}={own[key]!r}: give an integer of at least 1")
        if not isinstance(own["rewards"], Mapping) or set(own["rewards"]) != set(OUTCOMES):
            raise ValueError(f"{NODE}.rewards={own['rewards']}: give exactly {', '.join(OUTCOMES)}")
        self.rewards_of = {name: number(f"{NODE}.rewards.{name}", value) for name, value in own["rewards"].items()}
        self.read_characters, self.rank_turns = own["read_characters"], own["rank_turns"]
        super().__init__(settings)

    @property
    def lowest(self) -> float:
        """The same for every row."""
        return min(self.rewards_of.values())

    @property
    def max_turns(self) -> int:
        """A rank is one of five numbers: guessing must not be worth five attempts."""
        return min(self.rank_turns, self.settings.max_turns) if self.question == "rank" else self.settings.max_turns

    def load(self, row: Mapping[str, Any]) -> None:
        """A row of `prepare task=matrices`.

        Raises:
            TypeError, ValueError: it holds no question about a matrix.
        """
        truth = ground_truth(row, TRUTH_KEYS)
        matrix, where = truth["matrix"], f"reward_model.ground_truth of data_source={row.get('data_source')!r}"
        if truth["question"] not in QUESTIONS:
            raise ValueError(f"{where}: question={truth['question']!r} is unknown; choose one of {', '.join(QUESTIONS)}")
        lists = isinstance(matrix, list) and 0 < len(matrix) <= LARGEST and all(isinstance(each, list) for each in matrix)
        if not lists or not 0 < len(matrix[0]) <= LARGEST or len({len(each) for each in matrix}) > 1:
            raise ValueError(f"{where}: matrix must be a list of equally long rows, {LARGEST} at most; make the data anew")
        if any(type(entry) is not int for each in matrix for entry in each):
            raise ValueError(f"{where}: matrix holds something else than whole numbers; make the data anew")
        if truth["question"] == "det" and len(matrix) != len(matrix[0]):
            raise ValueError(f"{where}: a matrix of {len(matrix)}x{len(matrix[0])} has no determinant; make the data anew")
        self.question = truth["question"]
        self.answer = determinant(matrix) if self.question == "det" else rank(matrix)

    def judge(self, text: str) -> Verdict:
        """An integer that is the answer."""
        found = read_answer(text[-self.read_characters :])
        outcome = "no_answer" if found is None else "right_answer" if found == self.answer else "wrong_answer"
        said = 'there is no "answer" with an integer' if found is None else "the number is wrong"
        told = f"That is not right: {said}. Answer again, in the same form."
        solved = outcome == "right_answer"
        return Verdict(outcome, self.rewards_of[outcome], solved, "" if solved else told, "" if found is None else str(found))
