"""Processes of pools end when their pool is closed, forgotten or garbage, and not while a call is under way."""

from __future__ import annotations

import gc
import json
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.rewards.processes import workers_of_this_process
from unify_posttrain.rewards import calling, math
from unify_posttrain.rewards.calling import as_settings
from unify_posttrain.rewards.lending import Lending
from unify_posttrain.rewards.pool import KillablePool
from unify_posttrain.rewards.protection import Protection

MISCHIEF = "tests.rewards.mischief:act"
LIMITS = {"timeout_seconds": 5.0, "memory_mb": 1024}
FILE = str(Path(__file__).with_name("misbehaving.py"))


def made(workers: int = 2) -> KillablePool:
    pool = KillablePool(MISCHIEF, workers=workers, timeout_seconds=5.0, memory_mb=400)
    pool.map([["nap", 0.1]] * 2 * workers)
    return pool


@pytest.mark.slow
def test_a_pool_that_nobody_holds_ends_its_processes() -> None:
    before = workers_of_this_process()
    pool = made()
    assert len(workers_of_this_process() - before) == 2
    del pool
    assert workers_of_this_process() == before
    pool = made()
    pool.itself = pool  # type: ignore[attr-defined]
    del pool
    gc.collect()
    assert workers_of_this_process() == before


@pytest.mark.slow
def test_a_pool_whose_call_is_under_way_is_held() -> None:
    outcome: list[Any] = []
    thread = threading.Thread(target=lambda pool: outcome.append(pool.run(["nap", 1.0])), args=(made(1),))
    thread.start()
    gc.collect()
    thread.join()
    assert outcome[0].value == "awake"


@pytest.mark.slow
def test_settings_that_change_again_and_again_leave_few_pools() -> None:
    """As in a process of tests, or a study that sweeps a timeout: every setting had its two processes for ever."""
    before = workers_of_this_process()
    for number in range(math.MOST_POOLS + 3):
        scored = math.compute_score("s", r"\boxed{2}", "2", version=2, workers=1, timeout_seconds=30.0 + number, memory_mb=1024)
        assert scored["score"] == 1.0
    assert len(workers_of_this_process() - before) <= math.MOST_POOLS
    math.pools.close()
    assert workers_of_this_process() <= before


@pytest.mark.slow
def test_functions_of_users_that_change_leave_few_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five as many as are kept, which is made two here: each takes a second to start."""
    calling.gatherers.close()
    monkeypatch.setattr(calling.gatherers, "_most", 2)
    before = workers_of_this_process()
    for number in range(5):
        protection = Protection(True, 1, 5.0 + number, 512, 60.0, 0.5, 3, 1000)
        settings = as_settings({"path": FILE, "name": "compute_score", "reward_kwargs": {}}, protection)
        assert json.loads(settings)["protection"]["timeout_seconds"] == 5.0 + number
        assert calling.compute_score_sync("sums", "int", "1", None, settings=settings)["score"] == 1.0
    assert 0 < len(workers_of_this_process() - before) <= 2
    calling.gatherers.close()
    assert workers_of_this_process() <= before


class Thing:
    def __init__(self, key: str) -> None:
        if key == "broken":
            raise ValueError("cannot be made")
        self.key, self.closed = key, 0

    def close(self) -> None:
        self.closed += 1


def test_what_was_asked_for_longest_ago_is_closed() -> None:
    lending: Lending[str, Thing] = Lending(Thing, most=2)
    things = {}
    for key in ("a", "b", "a", "c"):
        with lending.lend(key) as thing:
            assert things.setdefault(key, thing) is thing, "made once"
    assert {key: thing.closed for key, thing in things.items()} == {"a": 0, "b": 1, "c": 0}
    lending.close()
    assert {key: thing.closed for key, thing in things.items()} == {"a": 1, "b": 1, "c": 1}
    with lending.lend("a") as again:
        assert again is not things["a"] and not again.closed


def test_what_is_in_use_is_closed_afterwards() -> None:
    lending: Lending[str, Thing] = Lending(Thing, most=1)
    with lending.lend("a") as first, lending.lend("a") as same:
        with lending.lend("b"):
            assert first is same and not first.closed
        with lending.lend("a") as another:
            assert another is not first
        lending.close()
        assert not first.closed and another.closed == 1
    assert first.closed == 1


def test_what_cannot_be_made_is_tried_again() -> None:
    lending: Lending[str, Thing] = Lending(Thing, most=1)
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot be made"), lending.lend("broken"):
            pass
    lending.close()


def test_threads_that_ask_at_once_share_one() -> None:
    lending: Lending[str, Thing] = Lending(Thing, most=1)
    barrier, found = threading.Barrier(8), []

    def ask() -> None:
        barrier.wait()
        with lending.lend("a") as thing:
            found.append(thing)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(map(id, found))) == 1
