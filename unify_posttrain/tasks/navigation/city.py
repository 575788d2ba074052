"""Cities of our own: a seeded grid of corners with some diagonals, landmarks with unique names, and routes through them."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from unify_posttrain.tasks.navigation.routes import DIRECTIONS, Leg, Point, Route, side

STRAIGHT_ON, BACK = 1.0, 179.0  # degrees: a route takes no corner within the one or beyond the other
TRIES = 10_000  # walks for one route: far more than any city needed

# First and second words of the names of landmarks: of cities to train in, and of others.
WORDS = {
    "train": (
        ("Blue", "Old", "Golden", "Quiet", "Northern", "Little", "Copper", "Bright", "Stone", "Willow", "Harbour", "Maple"),
        ("Door Bakery", "Mill Cafe", "Lantern Hotel", "Book Shop", "Clock Tower", "Garden Bank", "Bridge Museum", "Star Pharmacy"),
    ),
    "other": (
        ("Silver", "Upper", "Crimson", "Lucky", "Southern", "Grand", "Amber", "Velvet", "Iron", "Cedar", "Valley", "Coral"),
        (
            "Gate Library",
            "Hill Theatre",
            "Anchor Inn",
            "Music Store",
            "Water Tower",
            "Lake Gallery",
            "Crown Market",
            "Leaf Florist",
        ),
    ),
}


@dataclass(frozen=True)
class Layout:
    """The node `prepare.task.city`; conf/task/navigation.yaml has the meanings.

    Raises:
        ValueError: a value out of range; names the key.
    """

    size: int
    block: Sequence[int]
    diagonals: float
    landmarks: float
    legs: Sequence[int]
    straight: Sequence[int]

    def __post_init__(self) -> None:
        key = "prepare.task.city"
        if type(self.size) is not int or not 3 <= self.size <= 9:
            raise ValueError(f"{key}.size={self.size!r}: give the corners of a side, an integer from 3 to 9")
        for name in ("diagonals", "landmarks"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise ValueError(f"{key}.{name}={value!r}: give a share from 0 to 1")
        for name, least in (("block", 1), ("legs", 1), ("straight", 1)):
            value = getattr(self, name)
            if len(value) != 2 or any(type(each) is not int for each in value) or not least <= value[0] <= value[1]:
                raise ValueError(f"{key}.{name}={list(value)}: give the least and the most, integers from {least} on")
        if self.legs[1] > 2 * self.size:
            raise ValueError(f"{key}.legs={list(self.legs)}: a city of size {self.size} has routes of at most {2 * self.size} legs")

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Layout:
        """From the configuration."""
        known = set(cls.__dataclass_fields__)
        if set(node) != known:
            raise ValueError(f"prepare.task.city: keys {sorted(node)}; give exactly {', '.join(cls.__dataclass_fields__)}")
        return cls(**node)


@dataclass(frozen=True)
class City:
    """Corners, streets between them, and landmarks.

    Attributes:
        corners: place of each.
        streets: corner -> corners that a street leads to.
        landmarks: corner -> (name, bearing from there in degrees).
    """

    corners: tuple[Point, ...]
    streets: Mapping[int, tuple[int, ...]]
    landmarks: Mapping[int, tuple[str, float]] = field(default_factory=dict)

    @classmethod
    def build(cls, layout: Layout, words: str, seed: str) -> City:
        """A city, by its seed alone."""
        generator = random.Random(seed)
        size = layout.size
        lines = [list(itertools.accumulate(generator.randint(*layout.block) for _ in range(size))) for _ in range(2)]
        corners = tuple((float(x), float(y)) for y in lines[1] for x in lines[0])
        streets: dict[int, list[int]] = {corner: [] for corner in range(size * size)}

        def connect(first: int, second: int) -> None:
            streets[first].append(second)
            streets[second].append(first)

        for row, column in itertools.product(range(size), repeat=2):
            here = row * size + column
            if column + 1 < size:
                connect(here, here + 1)
            if row + 1 < size:
                connect(here, here + size)
            if row + 1 < size and column + 1 < size and generator.random() < layout.diagonals:
                connect(*((here, here + size + 1) if generator.random() < 0.5 else (here + 1, here + size)))
        names = [f"{first} {second}" for first, second in itertools.product(*WORDS[words])]
        marked = [corner for corner in range(size * size) if generator.random() < layout.landmarks]
        chosen = generator.sample(names, min(len(marked), len(names)))
        landmarks = {corner: (name, generator.uniform(0, 360)) for corner, name in zip(marked, chosen, strict=False)}
        return cls(corners, {corner: tuple(ends) for corner, ends in streets.items()}, landmarks)

    def routes(self, layout: Layout, seed: str) -> Iterator[Route]:
        """Routes without end, by the seed alone: no corner twice, none straight on, none back."""
        generator = random.Random(seed)
        while True:
            yield self._route(layout, generator)

    def _route(self, layout: Layout, generator: random.Random) -> Route:
        for _ in range(TRIES):
            wanted = generator.randint(*layout.legs)
            path = [generator.randrange(len(self.corners))]
            first = 45.0 * generator.randrange(len(DIRECTIONS))
            heading = first
            while len(path) <= wanted:
                ends = [
                    end for end in self.streets[path[-1]] if end not in path and _is_turn(heading, self._heading(path[-1], end))
                ]
                if not ends:
                    break
                chosen = generator.choice(ends)
                heading = self._heading(path[-1], chosen)
                path.append(chosen)
            if len(path) == wanted + 1:
                legs = tuple(self._leg(begin, end, generator, layout) for begin, end in itertools.pairwise(path))
                return Route(self.corners[path[0]], first, legs)
        raise ValueError(
            f"prepare.task.city: no route of {layout.legs[0]} to {layout.legs[1]} legs was found; give fewer legs, or a larger city"
        )

    def _heading(self, begin: int, end: int) -> float:
        (x, y), (east, north) = self.corners[begin], self.corners[end]
        return round(math.degrees(math.atan2(east - x, north - y)) % 360, 1)

    def _leg(self, begin: int, end: int, generator: random.Random, layout: Layout) -> Leg:
        heading = self._heading(begin, end)
        name, bearing = self.landmarks.get(end, (None, 0.0))
        seen = None if name is None else f"{name} is on your {side(heading, bearing)}"
        return Leg(seen, heading, self.corners[end], generator.randint(*layout.straight))


def _is_turn(old: float, new: float) -> bool:
    """Whether a corner is one: straight on has no word, and nobody turns back."""
    difference = abs(180 - (180 - (new - old)) % 360)
    return STRAIGHT_ON < difference < BACK
