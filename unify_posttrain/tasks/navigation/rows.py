"""Rows of navigation: one per position of a route, with the way so far as its prompt.

    nav_id      the action space of training, in other cities
    nav_ood     the other action space, on the same routes
    nav_city    the action space of training, in cities with other names

An episode of the papers is a route: `extra_info` says which one, and :func:`routes.route_outcome` puts its positions together.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from unify_posttrain.preparation.store import sha256
from unify_posttrain.tasks import files
from unify_posttrain.tasks.general_points.rows import check_rows
from unify_posttrain.tasks.navigation import prompts
from unify_posttrain.tasks.navigation.city import City, Layout
from unify_posttrain.tasks.navigation.published import read_routes
from unify_posttrain.tasks.navigation.routes import RULES, Route, instructions, rail

logger = logging.getLogger(__name__)

KEY, NAME = "prepare.task", "navigation"
SOURCES = ("nav_id", "nav_ood", "nav_city")
TRAIN = "nav_train"
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt
SCHEMA = files.schema(route=pa.int64(), position=pa.int64(), positions=pa.int64())


@dataclass(frozen=True)
class Settings:
    """The node `prepare.task` of navigation; conf/task/navigation.yaml has the meanings.

    Raises:
        ValueError: a value of a wrong type or outside its choices; names key, value and remedy.
    """

    seed: int
    rule: str
    prompt_style: str
    wrap_heading: bool
    routes: Mapping[str, int]
    routes_per_city: int
    city: Mapping[str, Any]
    source: str | None
    source_straight: int

    def __post_init__(self) -> None:
        if type(self.seed) is not int:
            raise ValueError(f"{KEY}.seed={self.seed!r}: give an integer")
        for key, known in (("rule", RULES), ("prompt_style", prompts.STYLES), ("wrap_heading", (True, False))):
            if getattr(self, key) not in known:
                raise ValueError(f"{KEY}.{key}={getattr(self, key)!r} is unknown; choose one of {', '.join(map(str, known))}")
        for key in ("routes_per_city", "source_straight"):
            if type(getattr(self, key)) is not int or getattr(self, key) < 1:
                raise ValueError(f"{KEY}.{key}={getattr(self, key)!r}: give an integer of at least 1")
        check_rows(f"{KEY}.routes", self.routes, ("train", *SOURCES))

    @classmethod
    def from_node(cls, node: Mapping[str, Any]) -> Settings:
        """From the configuration."""
        return cls(**files.row_settings(NAME, node, [item.name for item in fields(cls)]))


def city_routes(layout: Layout, words: str, seed: str, count: int, per_city: int) -> list[Route]:
    """Routes of as many cities as they need."""
    found: list[Route] = []
    for number in itertools.count():
        if len(found) >= count:
            return found
        city = City.build(layout, words, f"{seed}-city-{number}")
        found += itertools.islice(city.routes(layout, f"{seed}-routes-{number}"), min(per_city, count - len(found)))
    raise AssertionError("cities do not end")


def build_rows(settings: Settings) -> list[files.Row]:
    """All rows, train rows first; equal settings give equal rows.

    Raises:
        ValueError: settings of the city that are refused, or published routes that cannot be read.
    """
    other = RULES[1 - RULES.index(settings.rule)]
    rows = route_rows(settings, TRAIN, "train", settings.rule, _routes(settings, "train"))
    test = [("nav_id", settings.rule), ("nav_ood", other), ("nav_city", settings.rule)]
    tested = [row for source, rule in test for row in route_rows(settings, source, "test", rule, _routes(settings, source))]
    for of_file in (rows, tested):
        for index, row in enumerate(of_file):
            row["extra_info"]["index"] = index
    return rows + tested


def _routes(settings: Settings, name: str) -> list[Route]:
    """`nav_id` and `nav_ood` have the same routes, as far as both go: the difference is the action space alone."""
    layout, count = Layout.from_node(settings.city), settings.routes[name]
    if name in ("nav_id", "nav_ood") and settings.source is not None:
        path = Path(settings.source).expanduser()
        routes, dropped = read_routes(path, settings.source_straight, settings.seed)
        if dropped:
            logger.warning("%s: dropped %d routes: %s", path, dropped.total(), dict(dropped))
        if len(routes) < count:
            raise ValueError(f"{KEY}.routes.{name}={count}: {KEY}.source={path} has {len(routes)} routes; ask for fewer")
        return routes[:count]
    words = "other" if name == "nav_city" else "train"
    seed = {"train": "train", "nav_city": "other"}.get(name, "test")
    return city_routes(layout, words, f"{settings.seed}-{seed}", count, settings.routes_per_city)


def route_rows(settings: Settings, source: str, split: str, rule: str, routes: Sequence[Route]) -> list[files.Row]:
    """One row per position of each route."""
    return [row for number, route in enumerate(routes) for row in _of_route(settings, source, split, rule, number, route)]


def _of_route(settings: Settings, source: str, split: str, rule: str, number: int, route: Route) -> list[files.Row]:
    style, made = settings.prompt_style, []
    sentences, positions = instructions(route, settings.wrap_heading), rail(route, settings.wrap_heading)
    other = RULES[1 - RULES.index(rule)]
    for place, here in enumerate(positions):
        truth = {
            "rule": rule,
            "style": style,
            "action": here.action(rule),
            "other_action": here.action(other),
            "landmark": here.landmark or "",
            "intersection": here.intersection,
        }
        row = files.make_row(
            NAME,
            prompts.question(style, rule, sentences, positions[:place], here),
            prompts.answer(style, rule, sentences, here),
            json.dumps(truth),
            route=number,
            position=place,
            positions=len(positions),
        )
        row["data_source"], row["extra_info"]["split"] = source, split
        made.append(row)
    return made


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet`` and ``manifest.json``; nothing to do if they match the settings.

    Raises:
        ValueError: settings that are refused.
    """
    read = Settings.from_node(settings)
    identity: dict[str, Any] = {
        "format": MANIFEST_FORMAT,
        "settings": files.row_settings(NAME, settings, [item.name for item in fields(Settings)]),
    }
    if read.source is not None and Path(read.source).expanduser().is_file():
        identity["source"] = sha256(Path(read.source).expanduser())
    return files.write_files(folder, identity, SCHEMA, lambda: build_rows(read))
