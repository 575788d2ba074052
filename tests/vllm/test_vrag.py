"""Episodes with pages over verl's vLLM replica, through the real retrieval server."""

from __future__ import annotations

import math

import pytest

from ..e2e.pages import PAGES, PHASES, add_pages, is_shown, run_of
from ..tasks.vrag.test_http import real_server
from .conftest import LIMIT, VLLMWorld
from .seeing import HEADS

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(2 * LIMIT)]


def test_rollouts_and_demonstrations_with_pages_are_trained_by_vllm(world: VLLMWorld) -> None:
    corpus = add_pages(world, **HEADS)
    with real_server(corpus, pages=PAGES) as (url, _):
        world.train("pages", *PHASES, *run_of(corpus, url))
    metrics = world.metrics("pages")
    assert sorted(metrics) == [1, 2] and all(math.isfinite(value) for entry in metrics.values() for value in entry.values())
    is_shown(metrics)
