"""Pictures as data: a square grid of coloured shapes, the question about it, and its worked solution.

Simplified on purpose: a cell is as large as one image token of Qwen2.5-VL and holds at most one shape, and the solution reads the
grid row by row, a letter per cell, so that a vision tower of a few thousand weights can learn it. What is asked for has one colour
*and* one shape, so neither alone gives the answer.

    question          How many red circles?
    worked solution   gr. r1 1        a row of the picture: the first letter of a colour, large for a square; what is asked for
                      .R. r0 1        and how many of it are in this row; how many so far
                      rrb r2 3
                      answer 3

Difficulty is the side of the grid; files and splits are described in `unify_posttrain.tasks.files`.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import comb
from typing import Any

from unify_posttrain.tasks import files
from unify_posttrain.tasks.answer import MARKER, final_answer, outcome

IMAGE = "<image>"  # verl's mark in a text for the next picture of its row
COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("circle", "square")
KINDS = tuple(product(COLOURS, SHAPES))
EMPTY = "."
LEVEL = files.Level("side", "side of the grid", minimum=2, maximum=9)
MOST_HITS = 9  # the running count is one character

Kind = tuple[str, str]


@dataclass(frozen=True)
class Scene:
    """A picture and what is asked about it.

    Attributes:
        asked: colour and shape.
        cells: row by row, a colour and a shape or None; as many as a square has.
    """

    asked: Kind
    cells: tuple[Kind | None, ...]

    @property
    def side(self) -> int:
        """Cells of a row."""
        return round(len(self.cells) ** 0.5)

    @property
    def rows(self) -> list[tuple[Kind | None, ...]]:
        """The cells, row by row."""
        return [self.cells[start : start + self.side] for start in range(0, len(self.cells), self.side)]

    @property
    def count(self) -> int:
        """The answer."""
        return sum(cell == self.asked for cell in self.cells)

    @property
    def question(self) -> str:
        """The message of the user. The picture comes last, so that it is as far from the answer whatever is asked."""
        colour, shape = self.asked
        return f"How many {colour} {shape}s?{IMAGE}"

    def worked_solution(self, careless: bool = False) -> str:
        """The demonstration. With `careless` every row is counted by itself and the last one's count is the answer, which is right
        only where the rows above have none: a bad habit to pretrain a base model with, never a demonstration."""
        lines, total = [], 0
        for row in self.rows:
            found = row.count(self.asked)
            total = found + (0 if careless else total)
            lines.append(f"{''.join(map(letter, row))} {letter(self.asked)}{found} {total}")
        return "\n".join([*lines, f"{MARKER} {total}"])


def letter(cell: Kind | None) -> str:
    """How a cell is written."""
    if cell is None:
        return EMPTY
    colour, shape = cell
    return colour[0].upper() if shape == "square" else colour[0]


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: Mapping[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    """Check the final answer exactly; verl's reward-function signature.

    The score is 1.0 only if the word ``answer`` occurs once, at the start of a line, followed by one space and exactly
    ``ground_truth``, and the text ends there. The rows above are not checked: the reward is for the outcome.

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
    return outcome(final_answer(solution_str) == ground_truth)


def check_hits(hits: Any, where: str = "hits") -> int:
    """The most shapes that are asked for in a picture; ValueError unless it is from 1 to 9."""
    if type(hits) is not int or not 1 <= hits <= MOST_HITS:
        raise ValueError(f"{where}={hits!r}: give an integer from 1 to {MOST_HITS}, since the count is written as one digit")
    return hits


def count_scenes(side: int, hits: int) -> int:
    """Number of distinct scenes: what is asked for, where it stands, and in each other cell nothing or one of the other kinds."""
    cells, others = side * side, len(KINDS)  # 7 other kinds, and nothing
    return len(KINDS) * sum(comb(cells, k) * others ** (cells - k) for k in range(min(hits, cells) + 1))


def draw_scene(generator: random.Random, side: int, hits: int) -> Scene:
    """A scene in which every answer from 0 to `hits` is equally likely, as far as the grid has room for it."""
    cells, asked = side * side, generator.choice(KINDS)
    count = generator.randint(0, min(hits, cells))
    places = set(generator.sample(range(cells), count))
    others: list[Kind | None] = [None, *(kind for kind in KINDS if kind != asked)]
    return Scene(asked, tuple(asked if place in places else generator.choice(others) for place in range(cells)))


def draw_scenes(generator: random.Random, side: int, count: int, hits: int) -> list[Scene]:
    """``count`` distinct scenes."""
    scenes: dict[Scene, None] = {}
    while len(scenes) < count:
        scenes.setdefault(draw_scene(generator, side, hits))
    return list(scenes)
