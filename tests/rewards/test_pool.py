"""The pool of killable processes: a fault costs one item, order is kept, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from unify_posttrain.rewards.pool import KillablePool

pytestmark = pytest.mark.slow

MISCHIEF = "tests.rewards.mischief:act"


@pytest.fixture(scope="module")
def pool() -> Iterator[KillablePool]:
    with KillablePool(MISCHIEF, workers=2, timeout_seconds=1.0, memory_mb=400) as made:
        yield made


def children_of(session: int) -> list[int]:
    """Processes of a session, from /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_values_come_back_in_order(pool: KillablePool) -> None:
    outcomes = pool.map([["echo", number] for number in range(200)])
    assert [outcome.value for outcome in outcomes] == list(range(200))
    assert all(outcome.fault is None for outcome in outcomes)


@pytest.mark.parametrize(
    ("act", "fault"),
    [
        ("sleep", "timeout"),
        ("spin", "timeout"),
        ("swallow", "timeout"),  # a loop that catches every exception
        ("ignore_alarm", "timeout"),  # it asks for no interruption by signals that can be caught
        ("segfault", "crash"),
        ("exit", "crash"),
        ("recurse", "crash"),
        ("memory", "memory"),
        ("raise", "error"),
        ("raise_base", "error"),
        ("unserialisable", "error"),
    ],
)
def test_a_fault_costs_one_item(pool: KillablePool, act: str, fault: str) -> None:
    items: list[list[Any]] = [["echo", number] for number in range(6)]
    items[3] = [act, None]
    outcomes = pool.map(items)
    assert [outcome.value for outcome in outcomes] == [0, 1, 2, None, 4, 5]
    assert [outcome.fault for outcome in outcomes] == [None, None, None, fault, None, None]
    assert outcomes[3].detail


def test_what_the_function_prints_is_no_reply(pool: KillablePool) -> None:
    assert pool.run(["print", '[1, 2, null, ""]']).value == "printed"


@pytest.mark.parametrize("text", ["", "\n", "\u2028", "\ud800", "\x00", "a" * 300_000])
def test_any_text_survives_the_pipe(pool: KillablePool, text: str) -> None:
    assert pool.run(["echo", text]).value == text


def test_threads_share_a_pool(pool: KillablePool) -> None:
    with ThreadPoolExecutor(8) as threads:
        values = list(threads.map(lambda number: pool.run(["echo", number]).value, range(100)))
    assert values == list(range(100))


def test_a_supervisor_that_is_killed_is_replaced() -> None:
    with KillablePool(MISCHIEF, workers=1, timeout_seconds=1.0, memory_mb=400) as own:
        assert own.run(["echo", 1]).value == 1
        os.killpg(own.pids()[0], signal.SIGKILL)
        assert own.run(["echo", 2]).fault == "crash"
        assert own.run(["echo", 3]).value == 3


def test_closing_ends_workers_that_hang() -> None:
    own = KillablePool(MISCHIEF, workers=1, timeout_seconds=60.0, memory_mb=400)
    own.run(["echo", 1])
    session = own.pids()[0]
    with ThreadPoolExecutor(1) as thread:
        hanging = thread.submit(own.run, ["sleep", None])
        time.sleep(0.3)
        own.close()
        assert hanging.result(timeout=10).fault == "crash"
    deadline = time.monotonic() + 30  # a busy kernel takes a killed process away a little later
    while children_of(session) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert children_of(session) == []
    with pytest.raises(RuntimeError, match="closed"):
        own.run(["echo", 1])


def test_nothing_outlives_a_caller_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL gives the caller no chance to clean up: its workers have to notice, one of them in the middle of a hang."""
    script = (
        "from unify_posttrain.rewards.pool import KillablePool\n"
        "import threading, time\n"
        f"pool = KillablePool({MISCHIEF!r}, workers=2, timeout_seconds=1.0, memory_mb=400)\n"
        "pool.map([['echo', 1], ['nap', 0.2], ['nap', 0.2]])\n"
        "print(*pool.pids(), flush=True)\n"
        "pool.run(['sleep', None])\n"
    )
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    caller = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
    sessions = [int(pid) for pid in caller.stdout.readline().split()]
    assert len(sessions) == 2
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 20
    while any(children_of(session) for session in sessions) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [children_of(session) for session in sessions] == [[], []]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": 0}, "workers=0 must be above 0"),
        ({"timeout_seconds": 0.0}, "timeout_seconds=0.0"),
        ({"memory_mb": -1}, "memory_mb=-1"),
        ({"target": "tests.rewards.mischief"}, "module:function"),
    ],
)
def test_settings_are_checked(change: dict[str, Any], message: str) -> None:
    settings = {"target": MISCHIEF, "workers": 1, "timeout_seconds": 1.0, "memory_mb": 400, **change}
    with pytest.raises(ValueError, match=message):
        KillablePool(**settings)


@pytest.mark.parametrize("target", ["tests.rewards.mischief:nothing", "no_such_module:act"])
def test_a_target_that_cannot_be_imported_is_an_error(target: str) -> None:
    with (
        KillablePool(target, workers=1, timeout_seconds=1.0, memory_mb=400) as own,
        pytest.raises(RuntimeError, match="did not start"),
    ):
        own.run(1)


def test_too_little_memory_for_the_imports_is_an_error() -> None:
    with (
        KillablePool(MISCHIEF, workers=1, timeout_seconds=1.0, memory_mb=8) as own,
        pytest.raises(RuntimeError, match="memory_mb=8: the imports alone take"),
    ):
        own.run(["echo", 1])


def test_a_message_that_cannot_be_read_costs_the_item_to_blame(pool: KillablePool) -> None:
    """A class that the worker cannot import, an object that says no when it is sent."""
    outcomes = pool.send([["echo", 1], ["echo", Unknown()], ["echo", 2], ["echo", Refusing()], ["echo", 3]])
    assert [outcome.value for outcome in outcomes] == [1, None, 2, None, 3]
    assert "cannot be read" in outcomes[1].detail and "cannot be sent: not me" in outcomes[3].detail


class Unknown:
    """Pickled by a name that is nowhere else."""

    def __reduce__(self) -> tuple:
        return exec_nothing, ()


def exec_nothing() -> None:
    raise ImportError("not here")


class Refusing:
    def __reduce__(self) -> tuple:
        raise TypeError("not me")


def test_many_items_travel_in_few_messages(pool: KillablePool) -> None:
    assert [outcome.value for outcome in pool.map(["echo", number] for number in range(1000))] == list(range(1000))
    assert [outcome.fault for outcome in pool.send([["exit", None]] * 3 + [["echo", 1]])] == ["crash"] * 3 + [None]


def test_large_replies_and_small_ones_keep_their_order(pool: KillablePool) -> None:
    texts = ["x" * size for size in (1, 70_000, 2, 40_000, 40_000, 3)]
    assert [outcome.value for outcome in pool.send([["echo", text] for text in texts])] == texts
