"""A reward function that does what the response says: every way of failing that a function of a user may have."""

from __future__ import annotations

import asyncio
import ctypes
import decimal
import fractions
import os
import signal
import sys
import threading
import time
from collections import OrderedDict
from contextlib import suppress
from datetime import datetime
from typing import Any

import numpy as np
import torch


class Odd:
    """No JSON, and a repr that raises."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


class Strange(BaseException):
    """Not an Exception."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def circular() -> Any:
    value: list[Any] = []
    value.append(value)
    return value


def generator() -> Any:
    yield 1.0


async def later() -> float:
    await asyncio.sleep(0)
    return 0.5


RESULTS: dict[str, Any] = {
    # numbers
    "float": lambda: 0.5,
    "int": lambda: 1,
    "bool": lambda: True,
    "float32": lambda: np.float32(0.5),
    "int64": lambda: np.int64(1),
    "bool_": lambda: np.bool_(True),
    "array of no dimension": lambda: np.array(0.5),
    "tensor": lambda: torch.tensor(0.5),
    "bfloat16": lambda: torch.tensor(0.5, dtype=torch.bfloat16),
    "mapping": lambda: {"score": 0.5, "acc": 1.0, "pred": "x"},
    "ordered": lambda: OrderedDict(score=np.float64(0.5)),
    "coroutine": later,
    # no score
    "none": lambda: None,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "tensor of nan": lambda: torch.tensor(float("nan")),
    "mapping of none": lambda: {"score": None, "acc": 1.0},
    "mapping of nan": lambda: {"score": np.float32("nan")},
    "huge integer": lambda: 10**400,
    # results that are none
    "text": lambda: "1.0",
    "bytes": lambda: b"1",
    "complex": lambda: 1 + 2j,
    "list": lambda: [1.0],
    "tuple": lambda: (1.0, {"acc": 1}),
    "array": lambda: np.ones(2),
    "array of one": lambda: np.ones(1),
    "decimal": lambda: decimal.Decimal("0.5"),
    "fraction": lambda: fractions.Fraction(1, 2),
    "set": lambda: {1.0},
    "generator": generator,
    "object": Odd,
    "function": lambda: print,
    "no score": lambda: {"acc": 1.0},
    "empty": dict,
    "score of text": lambda: {"score": "1.0"},
    "score of list": lambda: {"score": [1.0]},
    # fields
    "field of list": lambda: {"score": 1.0, "parts": [1, 2.5, "x", None, float("nan")]},
    "field of mapping": lambda: {"score": 1.0, "parts": {"a": {"b": (1, 2)}, 3: np.arange(2)}},
    "field of array": lambda: {"score": 1.0, "parts": np.arange(3)},
    "field of tensor": lambda: {"score": 1.0, "parts": torch.ones(2)},
    "field of nan": lambda: {"score": 1.0, "parts": float("nan")},
    "field of none": lambda: {"score": 1.0, "parts": None},
    "field of surrogate": lambda: {"score": 1.0, "parts": "a\ud800b"},
    "field of huge text": lambda: {"score": 1.0, "parts": "x" * 5_000_000},
    "field of huge integer": lambda: {"score": 1.0, "parts": 2**80},
    "some field": lambda: {"score": 1.0, "only_here": 3},
    "field of object": lambda: {"score": 1.0, "parts": Odd()},
    "field of set": lambda: {"score": 1.0, "parts": {1}},
    "field of complex": lambda: {"score": 1.0, "parts": 1j},
    "field of bytes": lambda: {"score": 1.0, "parts": b"x"},
    "field of time": lambda: {"score": 1.0, "parts": datetime.now()},
    "field nested deep": lambda: {"score": 1.0, "parts": nested(100_000)},
    "field in a circle": lambda: {"score": 1.0, "parts": circular()},
    "field of number as text": lambda: {"score": 1.0, "acc": "yes"},
    "field without a name": lambda: {"score": 1.0, 3: 1},
    "field of a strange name": lambda: {"score": 1.0, "a\nb": 1},
    "field that is taken": lambda: {"score": 1.0, "uid": "x"},
    "field of the data": lambda: {"score": 1.0, "difficulty": 1},
}


def act(what: str) -> None:
    """Misbehaviour before there is a result; returns where it does no harm."""
    if what == "print":
        print('[1, 2, null, ""]')
        os.write(1, b"[1, 2]\n")
    elif what == "folder":
        os.chdir("/")
    elif what == "environment":
        os.environ.clear()
    elif what == "threads":
        for _ in range(4):
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    elif what == "fork":
        if os.fork() == 0:
            os._exit(7)
    elif what == "ignores the alarm of others":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    elif what == "raise":
        raise ValueError("no\nsuch thing")
    elif what == "raise base":
        raise Strange("no")
    elif what == "raise in text":
        raise ValueError(Odd())
    elif what == "exit":
        sys.exit(3)
    elif what == "os exit":
        os._exit(5)
    elif what == "os exit 0":
        os._exit(0)
    elif what == "abort":
        os.abort()
    elif what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "recursion":
        act_again(what)
    elif what == "spin":
        while True:
            pass
    elif what == "sleep":
        time.sleep(3600)
    elif what == "late":
        time.sleep(2)
    elif what == "memory":
        len([0] * 10**9)
    elif what == "prime_math":
        from verl.utils.reward_score import default_compute_score

        default_compute_score("numina_cn_k12", "\\boxed{1}", "1")
    elif what == "prime_math, unseen":
        with suppress(ImportError):
            act("prime_math")


def act_again(what: str) -> None:
    act(what)


HARMLESS = ("print", "folder", "environment", "threads", "fork", "ignores the alarm of others")


def compute_score(data_source: str, solution_str: str, ground_truth: Any, extra_info: Any = None) -> Any:
    """`solution_str` is one of RESULTS, or what `act` knows."""
    if solution_str in RESULTS:
        return RESULTS[solution_str]()
    act(solution_str)
    return 1.0
