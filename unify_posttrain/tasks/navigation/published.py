"""Reader of the published routes (`route_infos.json`): legs from the text of their milestones. No pickle is opened.

A route whose milestones cannot be read is dropped and counted.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.navigation.routes import Leg, Point, Route
from unify_posttrain.untrusted.documents import DocumentError, parse

METRES_PER_DEGREE = 111_320.0
NONE = ("", "none", "no landmark nearby", "no landmarks nearby")

_BLOCK = re.compile(r"\{([^{}]*)\}")
_HEADING = re.compile(r"\s*(\d{1,3})\s*\(([a-z]+)\)\s*")


class MilestoneError(ValueError):
    """A route that cannot be read: the reason."""


def read_routes(path: Path, straight: int, seed: int) -> tuple[list[Route], Counter[str]]:
    """The routes of a file, and how many were dropped, by reason.

    Args:
        path: of `route_infos.json`: [routes, count].
        straight: forward steps per leg.
        seed: of headings at the start, where the file has none.

    Raises:
        ValueError: not such a file, or no route in it; names it.
    """
    try:
        found = parse(path.read_bytes())
    except (OSError, DocumentError) as error:
        raise ValueError(f"prepare.task.source={path} cannot be read: {error}; give route_infos.json") from error
    if not isinstance(found, list) or not found or not isinstance(found[0], list):
        raise ValueError(f"prepare.task.source={path} must be a list of routes and their count, as route_infos.json is")
    routes, dropped = [], Counter[str]()
    for number, info in enumerate(found[0]):
        try:
            routes.append(read_route(info, straight, random.Random(f"{seed}-{number}")))
        except MilestoneError as error:
            dropped[str(error)] += 1
    if not routes:
        raise ValueError(f"prepare.task.source={path}: none of {len(found[0])} routes can be read ({dict(dropped)}); get it again")
    return routes, dropped


def read_route(info: Any, straight: int, generator: random.Random) -> Route:
    """One published route.

    Raises:
        MilestoneError: a part is missing or malformed.
    """
    milestones = milestone_blocks(_at(info, "milestone_info"))
    start = _point(_at(info, "start_place", "relocated_geocode"))
    places = [_point(each) for each in _list(_at(info, "route_results", "geocode_list"))]
    if len(places) not in (len(milestones), len(milestones) + 1):
        raise MilestoneError("geocode_list does not fit milestone_info")
    heading = info.get("init_heading") or generator.randrange(0, 360, 45)
    if isinstance(heading, bool) or not isinstance(heading, int | float) or not 0 <= heading < 360:
        raise MilestoneError("init_heading is no heading")
    legs = tuple(
        Leg(_landmark(block), _heading(block), _metres(start, place), straight)
        for block, place in zip(milestones, places[-len(milestones) :], strict=True)
    )
    return Route((0.0, 0.0), float(heading), legs)


def milestone_blocks(text: Any) -> list[dict[str, str]]:
    """The blocks in braces of a text, as mappings; a line is cut at its first colon.

    Raises:
        MilestoneError: no text, or no block.
    """
    if not isinstance(text, str):
        raise MilestoneError("milestone_info is no text")
    blocks = []
    for body in _BLOCK.findall(text):
        lines = [line.partition(":") for line in body.splitlines() if ":" in line]
        blocks.append({key.strip(" \t\"'"): value.strip(" \t\"',") for key, _, value in lines})
    if not blocks:
        raise MilestoneError("milestone_info has no block")
    return blocks


def _landmark(block: Mapping[str, str]) -> str | None:
    found = block.get("landmarks", "")
    return None if found.strip().lower() in NONE else found


def _heading(block: Mapping[str, str]) -> float:
    match = _HEADING.fullmatch(block.get("to_next_intersection_heading", ""))
    if match is None or int(match[1]) > 360:
        raise MilestoneError("to_next_intersection_heading is malformed")
    return float(int(match[1]) % 360)


def _at(info: Any, *keys: str) -> Any:
    for key in keys:
        if not isinstance(info, Mapping) or key not in info:
            raise MilestoneError(f"{key} is missing")
        info = info[key]
    return info


def _list(value: Any) -> Sequence[Any]:
    if not isinstance(value, list):
        raise MilestoneError("geocode_list is no list")
    return value


def _point(value: Any) -> Point:
    """Latitude and longitude."""
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 2 or any(isinstance(each, bool) or not isinstance(each, int | float) for each in numbers):
        raise MilestoneError("a geocode is no pair of numbers")
    return float(numbers[0]), float(numbers[1])


def _metres(origin: Point, place: Point) -> Point:
    """East and north of a start; a city is small enough to be flat."""
    east = (place[1] - origin[1]) * METRES_PER_DEGREE * math.cos(math.radians(origin[0]))
    return east, (place[0] - origin[0]) * METRES_PER_DEGREE
