"""Waiting for coroutines from anywhere: one event loop in a thread of its own, so that loops of others may come and go.

Whoever holds connections keeps them in this loop. A process that was forked gets a loop of its own.
"""

from __future__ import annotations

import asyncio
import atexit
import inspect
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FuturesTimeoutError  # another class than the built-in one before Python 3.11
from contextlib import suppress
from functools import lru_cache
from typing import Any

END_S = 1.0  # a process waits so long for the loop at its end: connections close

_LOCK = threading.Lock()
_LOOPS: dict[int, asyncio.AbstractEventLoop] = {}  # by process


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of this process, running."""
    with _LOCK:
        process = os.getpid()
        if process not in _LOOPS:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="unify-background-loop", daemon=True).start()
            _LOOPS[process] = loop
        return _LOOPS[process]


async def in_background(work: Coroutine[Any, Any, Any]) -> Any:
    """Let the background loop do some work, and wait for it in the loop of the caller."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, background_loop()))


async def in_thread(threads: int, work: Callable[..., Any], *given: Any) -> Any:
    """Let one of so many threads do some work that would block the loop: reading files, arithmetic."""
    return await asyncio.get_running_loop().run_in_executor(_threads(threads, os.getpid()), work, *given)


@lru_cache(maxsize=8)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Of this process: those of the one that it was forked from are not there."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"unify-work-{process}")


def settled(value: Any) -> Any:
    """A value, or what is awaited in its place; for callers without a loop, such as reward functions.

    It runs in the background loop, so nothing that is awaited may block it. Not to be called from that loop.
    """
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run_coroutine_threadsafe(wait(), background_loop()).result()


def _end() -> None:
    """Let what was asked last be done: closing connections."""
    loop = _LOOPS.get(os.getpid())
    if loop is not None:
        with suppress(FuturesTimeoutError):
            asyncio.run_coroutine_threadsafe(_rest(), loop).exception(END_S)


async def _rest() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    if others:
        await asyncio.wait(others, timeout=END_S / 2)


def _renew_lock() -> None:
    """A lock that another thread held while the process was forked would stay held in the child."""
    global _LOCK
    _LOCK = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)
atexit.register(_end)
