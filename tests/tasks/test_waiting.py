"""The loop in a thread of its own: for callers in any loop and in none, in several threads, and in processes that were forked."""

from __future__ import annotations

import asyncio
import os
import threading

from unify_posttrain.tasks.waiting import background_loop, in_background, in_thread, settled


async def where() -> tuple[asyncio.AbstractEventLoop, str]:
    return asyncio.get_running_loop(), threading.current_thread().name


def test_work_of_any_loop_is_done_in_one() -> None:
    loops = {asyncio.run(in_background(where()))[0] for _ in range(3)} | {settled(where())[0]}
    assert loops == {background_loop()}
    assert settled(3) == 3 and settled(in_background(where()))[1] == "unify-background-loop"


def test_threads_do_not_wait_for_each_other() -> None:
    async def two() -> list[str]:
        met = threading.Barrier(2)  # both must be at work at once

        def work(name: str) -> str:
            met.wait(60)
            return name

        return await asyncio.gather(in_thread(2, work, "a"), in_thread(2, work, "b"))

    assert asyncio.run(two()) == settled(two()) == ["a", "b"]


def test_errors_come_back() -> None:
    async def fails() -> None:
        raise KeyError("x")

    for call in (lambda: settled(fails()), lambda: asyncio.run(in_background(fails()))):
        try:
            call()
        except KeyError as error:
            assert error.args == ("x",)
        else:
            raise AssertionError


def test_a_forked_process_has_its_own() -> None:
    settled(where())
    settled(in_thread(2, int))
    child = os.fork()
    if child == 0:  # whatever happens here, the child must end here
        fine = False
        try:
            fine = settled(where())[0] is background_loop() and settled(in_thread(2, int)) == 0
        finally:
            os._exit(0 if fine else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
