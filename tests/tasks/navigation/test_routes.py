"""Routes, rails, words and cities of navigation, and the reader of published routes."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.tasks.environments import task_settings
from unify_posttrain.tasks.navigation.city import WORDS, City, Layout
from unify_posttrain.tasks.navigation.published import MilestoneError, milestone_blocks, read_route, read_routes
from unify_posttrain.tasks.navigation.routes import (
    Leg,
    Route,
    absolute_direction,
    instructions,
    rail,
    relative_direction,
    route_outcome,
    side,
)

ROUTE = Route(
    (0.0, 0.0),
    90.0,
    (
        Leg("Blue Door Bakery is on your right front", 0.0, (0.0, 80.0), 2),
        Leg(None, 315.0, (-56.6, 136.6), 2),
        Leg("Clock Tower is on your left", 45.0, (0.0, 193.2), 2),
    ),
)


@pytest.mark.parametrize(
    ("old", "new", "wrapped", "unwrapped"),
    [
        (0, 90, "right", "right"), (0, 45, "slightly right", "slightly right"), (0, 46, "right", "right"),
        (0, 0, "slightly left", "slightly left"), (350, 10, "slightly right", "left"), (10, 350, "slightly left", "right"),
        (0, 180, "right", "right"), (180, 0, "right", "left"), (300, 100, "right", "left"), (0, 315, "slightly left", "right"),
    ],
)  # fmt: skip
def test_relative_directions(old: float, new: float, wrapped: str, unwrapped: str) -> None:
    assert relative_direction(old, new) == wrapped and relative_direction(old, new, wrap=False) == unwrapped


@pytest.mark.parametrize(
    ("heading", "name"),
    [(22.4, "north"), (22.5, "northeast"), (337.5, "north"), (337.4, "northwest"), (0, "north"), (180, "south"), (360, "north")],
)
def test_absolute_directions(heading: float, name: str) -> None:
    assert absolute_direction(heading) == name


@pytest.mark.parametrize(
    ("heading", "bearing", "word"),
    [(0, 45, "right front"), (0, 180, "behind"), (90, 0, "left"), (0, 22.5, "front"), (0, 67.5, "right front"), (350, 5, "front"),
     (0, 337.5, "front"), (0, 300, "left front"), (0, 200, "behind")],
)  # fmt: skip
def test_sides(heading: float, bearing: float, word: str) -> None:
    assert side(heading, bearing) == word


def test_the_rail_of_three_legs() -> None:
    positions = rail(ROUTE)
    assert len(positions) == 10
    turns = {number: each for number, each in enumerate(positions) if each.actions[0].startswith("turn")}
    assert [(n, *each.actions) for n, each in turns.items()] == [
        (0, "turn_direction(north)", "turn_direction(left)"),
        (3, "turn_direction(northwest)", "turn_direction(slightly left)"),
        (6, "turn_direction(northeast)", "turn_direction(right)"),
    ]
    assert positions[9].actions == ("stop()", "stop()")
    assert {each.actions for n, each in enumerate(positions) if n not in (0, 3, 6, 9)} == {("forward()", "forward()")}
    assert positions[0].observation == "No landmarks nearby; "
    assert positions[3].observation == "Blue Door Bakery is on your right front; You observe an intersection"
    assert positions[6].observation == "No landmarks nearby; You observe an intersection"
    assert positions[9].observation == "Clock Tower is on your left; "


def test_six_sentences() -> None:
    said = instructions(ROUTE)
    assert said == [
        "First, turn left to face north.",
        "Move forward until you reach next intersection where Blue Door Bakery is on your right front.",
        "Turn slightly left to face northwest.",
        "Move forward until you reach next intersection.",
        "Turn right to face northeast.",
        "Move forward until you reach destination where Clock Tower is on your left.",
    ]
    assert [each.instruction for each in rail(ROUTE)] == [0, 1, 1, 2, 3, 3, 4, 5, 5, 5]


def test_a_short_leg_has_no_forward_steps() -> None:
    route = Route((0.0, 0.0), 20.0, (Leg("Clock Tower is on your left", 0.0, (0.0, 3.0), 2),))
    assert [each.actions[1] for each in rail(route)] == ["turn_direction(slightly left)", "stop()"]
    assert instructions(route) == [
        "Turn slightly left to face north.",
        "Move forward until you reach destination where Clock Tower is on your left.",
    ]


def test_a_route_from_its_positions() -> None:
    outcome = route_outcome([(1, 1), (1, 2), (0, 2), (1, 1)])
    assert (outcome.solved, outcome.accuracy, outcome.reached_accuracy) == (False, 3 / 6, 2 / 5)
    assert route_outcome([(1, 1), (1, 2)]) == route_outcome([(1, 2), (1, 1)])
    assert route_outcome([(1, 1)]).solved


# --- cities ------------------------------------------------------------------------------------------------------------


CITY = task_settings("navigation")["city"]


def layout(**changes: Any) -> Layout:
    return Layout.from_node({**CITY, **changes})


@pytest.mark.parametrize("seed", range(5))
def test_cities_and_their_routes(seed: int) -> None:
    plan = layout()
    city = City.build(plan, "train", f"{seed}")
    assert len(city.corners) == 36 and len(set(city.corners)) == 36
    names = [name for name, _ in city.landmarks.values()]
    assert len(names) == len(set(names)) > 5
    for route in islice(city.routes(plan, f"{seed}"), 20):
        assert 2 <= len(route.legs) <= 8 and all(1 <= leg.straight <= 5 for leg in route.legs)
        points = [route.start, *(leg.point for leg in route.legs)]
        assert len(set(points)) == len(points)  # no corner twice
        headings = [route.heading, *(leg.heading for leg in route.legs)]
        for old, new in pairwise(headings):
            assert 1 < abs((new - old + 180) % 360 - 180) < 179  # neither straight on nor back
        for (begin, end), leg in zip(pairwise(points), route.legs, strict=True):
            assert math.dist(begin, end) >= 60
            assert leg.heading == pytest.approx(math.degrees(math.atan2(end[0] - begin[0], end[1] - begin[1])) % 360, abs=0.1)
        ways = [[each.action(rule) for each in rail(route)] for rule in ("absolute", "relative")]
        assert len(ways[0]) == len(ways[1]) == sum(leg.straight + 1 for leg in route.legs) + 1
        assert ways[0][-1] == ways[1][-1] == "stop()" and rail(route)[-1].observation.startswith(
            str(route.legs[-1].landmark or "No")
        )


def test_a_city_is_its_seed() -> None:
    assert City.build(layout(), "train", "0") == City.build(layout(), "train", "0") != City.build(layout(), "train", "1")
    found = [next(City.build(layout(), "train", "0").routes(layout(), seed)) for seed in ("a", "a", "b")]
    assert found[0] == found[1] != found[2]
    assert not {f"{a} {b}" for a in WORDS["train"][0] for b in WORDS["train"][1]} & {
        f"{a} {b}" for a in WORDS["other"][0] for b in WORDS["other"][1]
    }
    names = [name for name, _ in City.build(layout(landmarks=1, size=9), "other", "0").landmarks.values()]
    assert len(names) == 81 and all(name.split()[0] in WORDS["other"][0] for name in names)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 2}, r"prepare.task.city.size=2: give the corners of a side, an integer from 3 to 9"),
        ({"landmarks": 2}, r"prepare.task.city.landmarks=2: give a share from 0 to 1"),
        ({"block": [150, 60]}, r"prepare.task.city.block=\[150, 60\]: give the least and the most"),
        ({"legs": [0, 8]}, r"prepare.task.city.legs=\[0, 8\]"),
        ({"legs": [2, 13]}, r"prepare.task.city.legs=\[2, 13\]: a city of size 6 has routes of at most 12 legs"),
        ({"streets": 1}, r"prepare.task.city: keys .*give exactly size, block"),
    ],
)
def test_cities_that_are_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layout(**changes)


# --- published routes --------------------------------------------------------------------------------------------------


def milestone(heading: str, landmark: str | None = None) -> str:
    lines = ['"intersection_idx": "0",', *([f'"landmarks": "{landmark}",'] if landmark else []), '"distance": "80 meters",']
    return "{\n" + "\n".join([*lines, f'"to_next_intersection_heading": "{heading}",']) + "\n}\n"


def published(**changes: Any) -> dict[str, Any]:
    return {
        "start_place": {"relocated_geocode": [40.0, -74.0]},
        "init_heading": 90,
        "route_results": {"geocode_list": [[40.0, -74.0], [40.001, -74.0], [40.001, -74.001]]},
        "milestone_info": milestone("0 (north)", "Shop: Old & New is on your left") + milestone("270 (west)"),
        **changes,
    }


def test_a_published_route() -> None:
    route = read_route(published(), 2, random.Random(0))
    assert [(leg.landmark, leg.heading, leg.straight) for leg in route.legs] == [
        ("Shop: Old & New is on your left", 0.0, 2),  # a line is cut at its first colon
        (None, 270.0, 2),
    ]
    assert route.heading == 90 and route.legs[0].point == pytest.approx((0, 111.32), abs=0.01)
    # 0.001 degrees to the west at a latitude of 40: 111.32·cos(40°)
    assert route.legs[1].point == pytest.approx((-85.28, 111.32), abs=0.01)
    assert rail(route)[0].actions == ("turn_direction(north)", "turn_direction(left)")
    without = [read_route(published(init_heading=heading), 2, random.Random(3)).heading for heading in (0, None)]
    assert without[0] == without[1] and without[0] % 45 == 0  # drawn from the seed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestone_info": None}, "milestone_info is no text"),
        ({"milestone_info": "nothing"}, "milestone_info has no block"),
        ({"milestone_info": milestone("north") * 2}, "to_next_intersection_heading is malformed"),
        ({"milestone_info": milestone("0 (north)") * 4}, "geocode_list does not fit milestone_info"),
        ({"start_place": {}}, "relocated_geocode is missing"),
        ({"route_results": {"geocode_list": 3}}, "geocode_list is no list"),
        ({"route_results": {"geocode_list": [["a", 1]] * 2}}, "a geocode is no pair of numbers"),
        ({"init_heading": "x"}, "init_heading is no heading"),
    ],
)
def test_published_routes_that_cannot_be_read(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(MilestoneError, match=message):
        read_route(published(**changes), 2, random.Random(0))


def test_a_published_file(tmp_path: Path) -> None:
    path = tmp_path / "route_infos.json"
    path.write_text(json.dumps([[published(), published(milestone_info="x"), "no route", published()], 4]))
    routes, dropped = read_routes(path, 2, seed=0)
    assert len(routes) == 2 and dropped == Counter({"milestone_info has no block": 1, "milestone_info is missing": 1})
    for content, message in (
        ("{}", "must be a list of routes"),
        ("[", "cannot be read"),
        ('[["x"], 1]', "none of 1 routes can be read"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=rf"prepare.task.source=.*{message}"):
            read_routes(path, 2, seed=0)
    with pytest.raises(ValueError, match=r"prepare.task.source=.*cannot be read"):
        read_routes(tmp_path / "none.json", 2, seed=0)


def test_blocks_of_a_text() -> None:
    assert milestone_blocks("{\nno colon\n'a': 'b: c',\n} x {\n}") == [{"a": "b: c"}, {}]
