"""The replay buffer: when it fires, what it hands out, and that a checkpoint in between changes nothing."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unify_posttrain.experience.replay import ORDERS, ReplayBuffer, ReplayEntry


def entry(row_id: int, step: int) -> ReplayEntry:
    return ReplayEntry(row_id, (1, row_id), (row_id, step, 2), step)


def buffer(size: int = 4, order: str = "newest", dedup: bool = True, max_buffer: Any = None, seed: int = 0) -> ReplayBuffer:
    return ReplayBuffer(size, order, dedup, max_buffer, seed)


def held(replay: ReplayBuffer) -> list[tuple[int, int]]:
    """(row_id, step) of what is inside, oldest first."""
    return [(stored["row_id"], stored["step"]) for stored in replay.state["entries"]]


def run(replay: ReplayBuffer, *batches: list[int], first: int = 1) -> list[list[int]]:
    """Row ids that each step's fine-tuning takes when these prompts are found hard, step by step."""
    taken = []
    for step, batch in enumerate(batches, start=first):
        replay.add(entry(row_id, step) for row_id in batch)
        taken.append([fired.row_id for fired in replay.take(step)])
    return taken


def test_specified_sequence() -> None:
    # M = 4: three are too few; then five are there, and the newest step goes first; one is left
    replay = buffer()
    assert run(replay, [1, 2, 3], [4, 5], []) == [[], [4, 5, 1, 2], []]
    assert held(replay) == [(3, 1)]
    assert len(replay) == 1


def test_oldest_starves_nobody() -> None:
    replay = buffer(order="oldest")
    assert run(replay, [1, 2, 3], [4, 5], [6, 7, 8, 9]) == [[], [1, 2, 3, 4], [5, 6, 7, 8]]
    assert held(replay) == [(9, 3)]


def test_random_is_drawn_from_seed_and_step() -> None:
    # default_rng([0, 1]).permutation(5) = 1 4 3 0 2: the first three of it, the others stay in their order
    replay = buffer(3, "random")
    assert run(replay, [10, 11, 12, 13, 14]) == [[11, 14, 13]]
    assert held(replay) == [(10, 1), (12, 1)]
    assert run(buffer(3, "random"), [10, 11, 12, 13, 14], first=2) == [[14, 12, 11]]  # [0, 2]: 4 2 1 0 3
    assert run(buffer(3, "random", seed=1), [10, 11, 12, 13, 14]) == [[11, 14, 10]]  # [1, 1]: 1 4 0 3 2


def test_one_fine_tuning_step_at_a_time() -> None:
    replay = buffer(2, "oldest")
    assert run(replay, [1, 2, 3, 4, 5], [], [], []) == [[1, 2], [3, 4], [], []]


def test_entries_come_back_unchanged() -> None:
    replay = buffer(1)
    replay.add([entry(7, 3)])
    assert replay.take(3) == [entry(7, 3)]


def test_the_mask_of_several_turns_survives_a_resume() -> None:
    turns, restored = replace(entry(7, 3), mask=(1, 0, 1)), buffer(2)
    restored.add([turns, entry(8, 3)])
    state = json.loads(json.dumps(restored.state))
    assert [stored.get("mask") for stored in state["entries"]] == [[1, 0, 1], None], "as before where there are no turns"
    again = buffer(2, "oldest")
    again.state = state
    assert again.take(4) == [turns, entry(8, 3)]


def test_dedup_keeps_the_newest_of_a_prompt() -> None:
    again = [ReplayEntry(2, (1, 2), (99, 2), step=2)]
    replay = buffer(3, "newest")
    replay.add([entry(1, 1), entry(2, 1)])
    replay.add(again)
    assert held(replay) == [(1, 1), (2, 2)]
    replay.add([entry(3, 2)])
    assert replay.take(2) == [*again, entry(3, 2), entry(1, 1)]  # refreshed: step 2, and the new target


def test_dedup_within_a_batch() -> None:
    replay = buffer()
    replay.add([entry(1, 1), entry(2, 1), entry(1, 1)])
    assert held(replay) == [(2, 1), (1, 1)]


def test_without_dedup_repetitions_count() -> None:
    assert run(buffer(dedup=False), [1, 2, 3], [2, 1]) == [[], [2, 1, 1, 2]]
    assert run(buffer(dedup=True), [1, 2, 3], [2, 1]) == [[], []]


def test_max_buffer_drops_the_oldest() -> None:
    replay = buffer(4, max_buffer=4)
    replay.add([entry(1, 1), entry(2, 1), entry(3, 1)])
    assert len(replay) == 3
    replay.add([entry(4, 2), entry(1, 2)])  # 1 is refreshed, so four remain
    assert held(replay) == [(2, 1), (3, 1), (4, 2), (1, 2)]
    replay.add([entry(5, 3)])
    assert held(replay) == [(3, 1), (4, 2), (1, 2), (5, 3)]


def test_size_minus_one_keeps_nothing() -> None:
    replay = buffer(-1, max_buffer=3)
    assert run(replay, [1, 2, 3], [4, 5]) == [[], []]
    assert len(replay) == 0


# --- state -----------------------------------------------------------------------------------------------------------

SETTINGS = st.builds(
    buffer,
    size=st.integers(1, 5),
    order=st.sampled_from(ORDERS),
    dedup=st.booleans(),
    max_buffer=st.none() | st.integers(5, 9),
    seed=st.integers(0, 3),
)
BATCHES = st.lists(st.lists(st.integers(0, 9), max_size=7), max_size=8)


def same_settings(replay: ReplayBuffer) -> ReplayBuffer:
    return ReplayBuffer(replay.size, replay.order, replay.dedup, replay.max_buffer, replay.seed)


@given(SETTINGS, BATCHES, st.booleans())
def test_a_trip_through_json_changes_nothing(replay: ReplayBuffer, batches: list[list[int]], before_taking: bool) -> None:
    travelling = same_settings(replay)
    for step, batch in enumerate(batches, start=1):
        for each in (replay, travelling):
            each.add(entry(row_id, step) for row_id in batch)
        if before_taking:
            travelling = reborn(travelling)
        assert travelling.take(step) == replay.take(step)
        travelling = reborn(travelling)
        assert travelling.state == replay.state


def reborn(replay: ReplayBuffer) -> ReplayBuffer:
    text = json.dumps(replay.state)
    restored = same_settings(replay)
    restored.add([entry(77, 99)])  # whatever it held before is forgotten
    restored.state = json.loads(text)
    return restored


def test_state_of_numpy_integers() -> None:
    replay = buffer()
    ids = tuple(np.array([5, 6]))
    replay.add([ReplayEntry(np.int64(3), ids, ids, np.int64(1))])  # type: ignore[arg-type]
    restored = reborn(replay)
    assert restored.state == {"entries": [{"row_id": 3, "prompt_ids": [5, 6], "response_ids": [5, 6], "step": 1}]}


def test_state_is_a_snapshot() -> None:
    replay = buffer()
    replay.add([entry(1, 1)])
    state = replay.state
    replay.add([entry(2, 2)])
    assert len(state["entries"]) == 1


def test_state_under_other_settings_obeys_those() -> None:
    replay = buffer(dedup=False)
    replay.add([entry(1, 1), entry(2, 1), entry(1, 2)])
    restored = buffer(1, dedup=True, max_buffer=1)
    restored.state = replay.state
    assert held(restored) == [(1, 2)]


@given(st.integers(1, 5), st.sampled_from(ORDERS), BATCHES)
def test_nothing_is_lost_or_doubled(size: int, order: str, batches: list[list[int]]) -> None:
    replay, added, taken = buffer(size, order, dedup=False), Counter[tuple[int, int]](), Counter[tuple[int, int]]()
    for step, batch in enumerate(batches, start=1):
        replay.add(entry(row_id, step) for row_id in batch)
        added.update((row_id, step) for row_id in batch)
        waiting = len(replay)
        fired = replay.take(step)
        assert len(fired) == (size if waiting >= size else 0)
        assert len(replay) == waiting - len(fired)
        taken.update((each.row_id, each.step) for each in fired)
        steps = [each.step for each in fired]
        if order != "random":
            assert steps == sorted(steps, reverse=order == "newest")
    assert taken + Counter(held(replay)) == added


@given(SETTINGS, BATCHES)
def test_bounds_hold(replay: ReplayBuffer, batches: list[list[int]]) -> None:
    for step, batch in enumerate(batches, start=1):
        replay.add(entry(row_id, step) for row_id in batch)
        inside = held(replay)
        assert len(replay) <= (replay.max_buffer or len(replay))
        assert [step for _, step in inside] == sorted(step for _, step in inside)
        if replay.dedup:
            assert len({row_id for row_id, _ in inside}) == len(inside)
        replay.take(step)


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"size": 0}, r"fusion.relift.sft_data_size=0 .*-1 for no buffer"),
        ({"size": -2}, r"fusion.relift.sft_data_size=-2"),
        ({"size": 1.0}, r"fusion.relift.sft_data_size=1.0 .*integer"),
        ({"size": True}, r"fusion.relift.sft_data_size=True .*integer"),
        ({"order": "fifo"}, r"fusion.relift.order='fifo'.*newest, oldest, random"),
        ({"dedup": "yes"}, r"fusion.relift.dedup='yes'.*true or false"),
        ({"max_buffer": 3}, r"fusion.relift.max_buffer=3 .*fusion.relift.sft_data_size=4"),
        ({"size": -1, "max_buffer": 0}, r"fusion.relift.max_buffer=0"),
        ({"max_buffer": 8.0}, r"fusion.relift.max_buffer=8.0 .*integer"),
        ({"size": 1, "max_buffer": True}, r"fusion.relift.max_buffer=True .*integer"),
    ],
)
def test_settings_are_checked(changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        buffer(**changed)
