"""Positions of a route as episodes: the verifier's tables, and rows that show nothing of what is to come."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.tasks.environments import node, row_of, task_settings
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.navigation.environment import read_key
from unify_posttrain.tasks.navigation.rows import SCHEMA, Settings, build_rows, write_splits

LANDMARK = "Blue Door Bakery is on your right front"
ROAD = {"action": "forward()", "other_action": "forward()", "landmark": "", "intersection": False}
CORNER = {"action": "turn_direction(west)", "other_action": "turn_direction(left)", "landmark": LANDMARK, "intersection": True}
END = {"action": "stop()", "other_action": "stop()", "landmark": "Clock Tower is on your left", "intersection": False}
NOTHING, SEEN = "No landmarks nearby; ", "No landmarks nearby; You observe an intersection"
BOTH, ALONE = f"{LANDMARK}; You observe an intersection", f"{LANDMARK}; "


def said(seen: str, action: str) -> str:
    return json.dumps({"current observation": seen, "current instruction": "…", "action": action})


def step(place: dict[str, Any], text: str, style: str = "native", **changes: Any) -> tuple[Any, dict[str, Any]]:
    environment = make_environment(node("navigation", **changes))
    environment.reset(row_of({"rule": "absolute", "style": style, **place}))
    return environment.step(text, True), environment.fields()


@pytest.mark.parametrize(
    ("place", "seen", "action", "fixed", "upstream"),
    [
        (ROAD, "anything; You observe an intersection", "forward()", 1, 1),
        (ROAD, NOTHING, "stop()", -1, -1),
        (ROAD, SEEN, "turn_direction(north)", -1.5, -1.5),
        (CORNER, BOTH, "turn_direction(east)", -1, -1.5),
        (CORNER, ALONE, "forward()", -1.5, -1),
        (END, "Clock Tower is on your left; You observe an intersection", "forward()", -1.5, -1.5),
    ],
)
def test_rewards(place: dict[str, Any], seen: str, action: str, fixed: float, upstream: float) -> None:
    for check, reward in (("fixed", fixed), ("upstream", upstream)):
        found, fields = step(place, said(seen, action), check_intersection=check)
        assert found.reward == reward and found.solved == (reward == 1) and fields["acc"] == (reward == 1)


@pytest.mark.parametrize(
    ("action", "style", "right"),
    [
        ("turn_direction(west)", "native", True), ("turn_direction(west)", "upstream", True),
        ("Turn_Direction( West )", "native", True),
        ("turn_direction( west)", "upstream", False), ("turn_direction(west).", "native", False), ("west", "native", False),
    ],
)  # fmt: skip
def test_how_actions_are_compared(action: str, style: str, right: bool) -> None:
    assert step(CORNER, said(BOTH, action), style)[0].solved == right


def test_two_attempts_and_the_other_action_space() -> None:
    environment = make_environment(node("navigation", score="sum"))
    environment.reset(row_of({"rule": "absolute", "style": "native", **CORNER}))
    steps = [environment.step(said(BOTH, action), True) for action in ("turn_direction(left)", "turn_direction(east)")]
    assert [(each.reward, each.done) for each in steps] == [(-1, False), (-2, True)]
    assert "the action is wrong" in steps[0].feedback[0]
    fields = environment.fields()
    assert (fields["other_rule"], fields["score"], fields["right_turns"], fields["turns"]) == (0.5, -3, 0, 2)


@pytest.mark.parametrize(
    ("text", "native", "upstream"),
    [
        ('{"action": "stop()"}', "stop()", "stop()"),
        ('{"action": "stop()",}', "stop()", "stop()"),
        ('{"action" : "stop()",}', "stop()", None),
        ("{'action': 'stop()'}", "stop()", None),
        ('"action": "a", "action": "b",', "b", "a"),
        ('{"action": 3}', None, None),
        ("stop()", None, None),
        ("", None, None),
    ],
)
def test_reading(text: str, native: str | None, upstream: str | None) -> None:
    assert (read_key(text, "action", "native"), read_key(text, "action", "upstream")) == (native, upstream)


def test_an_answer_without_an_action() -> None:
    found, fields = step(ROAD, "I would go on")
    assert (found.reward, fields["outcome_no_action"], fields["pred"]) == (-1, 1, "") and "no action" in found.feedback[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"check_intersection": "both"}, r"environment.check_intersection='both' is unknown; choose one of fixed, upstream"),
        ({"rewards": {"right_action": 1}}, r"environment.rewards=.*give exactly right_action, wrong_action"),
        ({"read_characters": "x"}, r"environment.read_characters='x'"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(node("navigation", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"rule": "up"}, "rule='up' is unknown; choose one of absolute, relative"),
     ({"intersection": 1}, "intersection=1 must be of type bool"),
     ({"style": "compact"}, "style='compact' is unknown"), ({"action": None}, "action=None must be of type str")],
)  # fmt: skip
def test_what_is_no_position(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_environment(node("navigation")).reset(row_of({"rule": "absolute", "style": "native", **ROAD, **changes}))


# --- rows --------------------------------------------------------------------------------------------------------------


def settings(**changes: Any) -> dict[str, Any]:
    small = {"train": 30, "nav_id": 6, "nav_ood": 6, "nav_city": 3}
    return {**task_settings("navigation"), "routes": small, **changes}


@pytest.mark.parametrize("style", ["native", "upstream"])
def test_rows_show_the_way_so_far_and_nothing_else(style: str) -> None:
    rows = build_rows(Settings.from_node(settings(prompt_style=style)))
    by_route: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows:
        by_route.setdefault((row["data_source"], row["extra_info"]["route"]), []).append(row)
    sources = {source: sum(key[0] == source for key in by_route) for source, _ in by_route}
    assert sources == {"nav_train": 30, "nav_id": 6, "nav_ood": 6, "nav_city": 3}
    environment = make_environment(node("navigation"))
    for (source, _), route in by_route.items():
        places = [(row["extra_info"]["position"], row["extra_info"]["positions"]) for row in route]
        assert places == [(number, len(route)) for number in range(len(route))]
        truths = [json.loads(row["reward_model"]["ground_truth"]) for row in route]
        assert {truth["rule"] for truth in truths} == {"relative" if source == "nav_ood" else "absolute"}
        assert truths[-1]["action"] == "stop()"
        for number, row in enumerate(route):
            asked = row["prompt"][0]["content"]
            shown = [line.partition(" -> ")[2] for line in asked.splitlines() if " -> " in line and line[0].isdigit()]
            assert shown == [truth["action"] for truth in truths[:number]]
            environment.reset(row)
            assert environment.step(row["target"][0]["content"], True).reward == 1


def test_the_other_action_space_walks_the_same_routes() -> None:
    rows = build_rows(Settings.from_node(settings()))
    truths = {source: [json.loads(row["reward_model"]["ground_truth"]) for row in rows if row["data_source"] == source]
              for source in ("nav_id", "nav_ood")}  # fmt: skip
    assert [(t["action"], t["other_action"], t["landmark"]) for t in truths["nav_id"]] == [
        (t["other_action"], t["action"], t["landmark"]) for t in truths["nav_ood"]
    ]
    turned = build_rows(Settings.from_node(settings(rule="relative")))
    assert "slightly" in json.dumps([row["reward_model"] for row in turned if row["data_source"] == "nav_id"])


def test_files_and_published_routes(tmp_path: Path) -> None:
    from tests.tasks.navigation.test_routes import published

    source = tmp_path / "route_infos.json"
    source.write_text(json.dumps([[published(), published(milestone_info="x"), published(init_heading=0)], 3]))
    small = {"train": 1, "nav_id": 2, "nav_ood": 2, "nav_city": 0}
    given = settings(source=str(source), routes=small)
    paths = write_splits(tmp_path / "data", given)
    assert pq.read_schema(paths["train"]).equals(SCHEMA)
    asked = [row["prompt"][0]["content"] for row in pq.read_table(paths["test"]).to_pylist()]
    assert any("Shop: Old & New is on your left" in text for text in asked)
    with pytest.raises(ValueError, match=r"prepare.task.routes.nav_id=3: prepare.task.source=.* has 2 routes; ask for fewer"):
        write_splits(tmp_path / "other", settings(source=str(source), routes={**small, "nav_id": 3}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "up"}, r"prepare.task.rule='up' is unknown; choose one of absolute, relative"),
        ({"prompt_style": "compact"}, r"prepare.task.prompt_style='compact' is unknown; choose one of native, upstream"),
        ({"wrap_heading": 2}, r"prepare.task.wrap_heading=2 is unknown; choose one of True, False"),
        ({"routes_per_city": 0}, r"prepare.task.routes_per_city=0: give an integer of at least 1"),
        ({"routes": {"train": 1}}, r"prepare.task.routes=.*give exactly train, nav_id, nav_ood, nav_city"),
        ({"seed": None}, r"prepare.task.seed=None: give an integer"),
    ],
)
def test_settings_of_rows_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_rows(Settings.from_node(settings(**changes)))
