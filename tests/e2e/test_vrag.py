"""Episodes with pages, trained by the real command through the real retrieval server."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.e2e.conftest import World
from tests.e2e.pages import PAGES, PHASES, add_pages, is_shown, run_of
from tests.tasks.vrag.test_http import real_server


@pytest.fixture(scope="module")
def corpus(world: World) -> Path:
    return add_pages(world)


@pytest.mark.e2e
def test_rollouts_and_demonstrations_with_pages_are_trained_through_a_server(world: World, corpus: Path) -> None:
    with real_server(corpus, pages=PAGES) as (url, _):
        world.train("pages", *PHASES, *run_of(corpus, url))
    metrics = world.metrics("pages")
    assert sorted(metrics) == [1, 2] and all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    is_shown(metrics)
