"""Routes, and the rail: what an expert sees and does from the start to the destination.

A route has a start, a heading (degrees, 0 north, clockwise) and legs that end at corners, the last one at the destination. The
expert turns at the start, goes a leg's forward steps, turns at its end towards the next, and stops at the destination. Only right
actions advance, so what is seen at a position does not depend on the policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

RULES = ("absolute", "relative")  # action spaces
DIRECTIONS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
SIDES = ("front", "right front", "right", "right behind", "behind", "left behind", "left", "left front")
TURNS = ("left", "slightly left", "slightly right", "right")
SHARP = 45.0  # degrees beyond which a turn is no slight one
SHORT = 5.0  # metres: a leg up to here has no forward steps
NO_LANDMARK, INTERSECTION = "No landmarks nearby", "You observe an intersection"

Point = tuple[float, float]  # metres to the east and to the north


@dataclass(frozen=True)
class Leg:
    """From one corner to the next.

    Attributes:
        landmark: at its end, with where it is seen ("Clock Tower is on your left"); None if there is none.
        heading: in degrees.
        point: its end.
        straight: forward steps.
    """

    landmark: str | None
    heading: float
    point: Point
    straight: int


@dataclass(frozen=True)
class Route:
    """A way from a start to a destination."""

    start: Point
    heading: float
    legs: tuple[Leg, ...]


@dataclass(frozen=True)
class Position:
    """What is seen at a position of the rail, and what the expert does there.

    Attributes:
        landmark: None if there is none.
        intersection: at corners between two legs.
        actions: right action by rule.
        instruction: number of the sentence that is being carried out.
    """

    landmark: str | None
    intersection: bool
    actions: tuple[str, str]
    instruction: int

    @property
    def observation(self) -> str:
        """As text; a blank remains where there is no intersection."""
        return f"{self.landmark or NO_LANDMARK}; {INTERSECTION if self.intersection else ''}"

    def action(self, rule: str) -> str:
        """The expert's, in the action space of a rule."""
        return self.actions[RULES.index(rule)]


def absolute_direction(heading: float) -> str:
    """One of eight names, 45 degrees each.

    >>> absolute_direction(22.4), absolute_direction(22.5), absolute_direction(337.5)
    ('north', 'northeast', 'north')
    """
    return DIRECTIONS[int((heading % 360 + 22.5) // 45) % 8]


def relative_direction(old: float, new: float, wrap: bool = True) -> str:
    """The turn from one heading to another.

    Args:
        wrap: bring the difference to (-180, 180]; False: as the published code has it, so that 350 to 10 is a turn to the left.

    >>> relative_direction(350, 10), relative_direction(350, 10, wrap=False)
    ('slightly right', 'left')
    """
    difference = new - old
    if wrap:
        difference = 180 - (180 - difference) % 360
    if abs(difference) > SHARP:
        return "left" if difference < 0 else "right"
    return "slightly left" if difference <= 0 else "slightly right"


def side(heading: float, bearing: float) -> str:
    """Where something is seen from, by the nearest of eight words; ties go to the earlier one.

    >>> side(0, 45), side(90, 0), side(0, 22.5), side(0, 337.5)
    ('right front', 'left', 'front', 'front')
    """
    angle = (bearing - heading) % 360

    def apart(number: int) -> float:
        away = abs(angle - 45 * number)
        return min(away, 360 - away)

    return SIDES[min(range(len(SIDES)), key=apart)]


def _turn(direction: str) -> str:
    return f"turn_direction({direction})"


def rail(route: Route, wrap: bool = True) -> list[Position]:
    """Every position of the expert, in order.

    >>> leg = Leg(None, 0.0, (0.0, 3.0), straight=1)
    >>> [position.actions[1] for position in rail(Route((0.0, 0.0), 20.0, (leg,)))]
    ['turn_direction(slightly left)', 'stop()']
    """
    found = []
    heading, place, landmark = route.heading, route.start, None
    for number, leg in enumerate(route.legs):
        actions = _turn(absolute_direction(leg.heading)), _turn(relative_direction(heading, leg.heading, wrap))
        found.append(Position(landmark, number > 0, actions, 2 * number))
        if math.dist(place, leg.point) > SHORT:
            found += [Position(None, False, ("forward()", "forward()"), 2 * number + 1)] * leg.straight
        heading, place, landmark = leg.heading, leg.point, leg.landmark
    return [*found, Position(landmark, False, ("stop()", "stop()"), 2 * len(route.legs) - 1)]


def instructions(route: Route, wrap: bool = True) -> list[str]:
    """Two sentences per leg; they name the relative and the absolute direction, so that both action spaces can follow them."""
    found, heading = [], route.heading
    for number, leg in enumerate(route.legs):
        turn = "First, turn" if number == 0 and len(route.legs) > 1 else "Turn"
        found.append(f"{turn} {relative_direction(heading, leg.heading, wrap)} to face {absolute_direction(leg.heading)}.")
        until = "destination" if number == len(route.legs) - 1 else "next intersection"
        found.append(f"Move forward until you reach {until}{f' where {leg.landmark}' if leg.landmark else ''}.")
        heading = leg.heading
    return found


@dataclass(frozen=True)
class RouteOutcome:
    """What became of a route whose positions were answered one by one.

    Attributes:
        solved: every position is.
        accuracy: right answers over attempts, of all positions.
        reached_accuracy: the same up to the first position that stayed unsolved, where an episode would have ended.
    """

    solved: bool
    accuracy: float
    reached_accuracy: float


def route_outcome(positions: Sequence[tuple[int, int]]) -> RouteOutcome:
    """Put the positions of one route together.

    Args:
        positions: (right answers, attempts) of each, in order.

    >>> route_outcome([(1, 1), (1, 2), (0, 2), (1, 1)])
    RouteOutcome(solved=False, accuracy=0.5, reached_accuracy=0.4)
    """
    failed = next((number for number, (right, _) in enumerate(positions) if not right), None)
    reached = positions if failed is None else positions[: failed + 1]

    def share(counts: Sequence[tuple[int, int]]) -> float:
        return sum(right for right, _ in counts) / max(sum(attempts for _, attempts in counts), 1)

    return RouteOutcome(failed is None, share(positions), share(reached))
