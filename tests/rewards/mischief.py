"""A function that does what it is told, for the tests of the pool: none of it may reach the caller."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from typing import Any


class _Strange(BaseException):
    """Not an Exception, as the timeouts of some libraries are not."""


def act(item: list[Any]) -> Any:
    """`item` is [what, argument]."""
    what, argument = item
    return globals()[f"_{what}"](argument)


def act_on_gold(item: dict[str, Any]) -> dict[str, float]:
    """As `grading.grade_item` on a ground truth, which here may say what to do instead."""
    if item["gold"] in ("spin", "segfault"):
        act([item["gold"], None])
    return {"gold_ok": 1.0}


def _echo(argument: Any) -> Any:
    return argument


def _nap(seconds: float) -> str:
    time.sleep(seconds)
    return "awake"


def _sleep(_: Any) -> None:
    time.sleep(3600)


def _spin(_: Any) -> None:
    while True:
        pass


def _swallow(_: Any) -> None:
    while True:
        with suppress(BaseException):
            time.sleep(3600)


def _ignore_alarm(_: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    while True:
        time.sleep(3600)


def _segfault(_: Any) -> None:
    ctypes.string_at(0)


def _exit(_: Any) -> None:
    os._exit(3)


def _recurse(_: Any) -> Any:
    sys.setrecursionlimit(10**9)
    return _nested(0)


def _nested(depth: int) -> Any:
    return eval_nothing(sorted([depth], key=lambda value: _nested(value + 1)))


def eval_nothing(value: Any) -> Any:
    """Keeps the call above from being a tail."""
    return value


def _memory(_: Any) -> int:
    return len([0] * 10**9)  # 8 GB


def _raise(_: Any) -> None:
    raise ValueError("no")


def _raise_base(_: Any) -> None:
    raise _Strange("no")


def _unserialisable(_: Any) -> Any:
    return object()


def _print(text: str) -> str:
    print(text)
    os.write(1, text.encode() + b"\n")
    return "printed"
