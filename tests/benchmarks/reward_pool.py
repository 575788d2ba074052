"""Does the pool scale with its workers? Answers per second with 1, 2 and 4 of them, in alternating rounds.

    python -m tests.benchmarks.reward_pool [--answers 1500] [--rounds 3] [--workers 1 2 4] [--door map scores threads]

Three doors lead into the pool: `map` hands answers to `KillablePool.map`; `scores` is `rewards.math.compute_scores`, which asks
about every ground truth first; `threads` calls `rewards.math.compute_score` row by row from 16 threads, as reward managers do. No
ground truth is asked about twice in a round. Expect two minutes on 2 idle cores.

Wall time on a machine that does something else says little: beside it stand the processor seconds of workers and caller, which a
pool that scales keeps constant, and the load. `least wall` is the best round, the one that the rest of the machine disturbed least.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks.reward_faults import answers
from unify_posttrain.rewards import math
from unify_posttrain.rewards.pool import KillablePool

TICKS = os.sysconf("SC_CLK_TCK")
THREADS = 16
LIMITS = {"timeout_seconds": 20.0, "memory_mb": 1024}

Item = Mapping[str, Any]


def processor_seconds(sessions: Sequence[int]) -> float:
    """Of all processes of some sessions: supervisors, their children, and the children that have ended."""
    ticks = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) in sessions:
                ticks += sum(map(int, fields[11:13])) + (sum(map(int, fields[13:15])) if int(folder.name) in sessions else 0)
    return ticks / TICKS


def by_map(pool: KillablePool, items: Sequence[Item]) -> list[float]:
    return [outcome.value["score"] for outcome in pool.map(items)]


def by_scores(pool: KillablePool, items: Sequence[Item]) -> list[float]:
    math._verdicts = math._Verdicts()  # nothing is known of any ground truth
    texts, golds = [item["text"] for item in items], [item["gold"] for item in items]
    return [each["score"] for each in math.compute_scores(texts, golds, version=6, workers=pool.workers, **LIMITS)]


def by_threads(pool: KillablePool, items: Sequence[Item]) -> list[float]:
    math._verdicts = math._Verdicts()

    def one(item: Item) -> float:
        return math.compute_score("s", item["text"], item["gold"], version=6, workers=pool.workers, **LIMITS)["score"]

    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(one, items))


DOORS: dict[str, Callable[[KillablePool, Sequence[Item]], list[float]]] = {
    "map": by_map,
    "scores": by_scores,
    "threads": by_threads,
}


def started(workers: int, items: Sequence[Item]) -> KillablePool:
    """The pool of `rewards.math` with this many workers, all of which run and have graded something."""
    with math.pool(math.GRADE, workers, **LIMITS) as pool:
        return _warm(pool, items)


def _warm(pool: KillablePool, items: Sequence[Item]) -> KillablePool:
    while len(pool.pids()) < pool.workers:
        pool.map(items[: 8 * pool.workers])
    pool.map(items)
    return pool


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=1500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--door", nargs="+", default=list(DOORS), choices=list(DOORS))
    options = parser.parse_args()
    items = answers(options.answers, seed=0)
    pools = {workers: started(workers, items) for workers in options.workers}
    console = Console(width=132)
    for door in options.door:
        measured: dict[int, list[tuple[float, float, float, float]]] = {workers: [] for workers in pools}
        expected = None
        for _ in range(options.rounds):
            for workers, pool in pools.items():
                before, own, begun = processor_seconds(pool.pids()), os.times(), time.monotonic()
                scores = DOORS[door](pool, items)
                wall, after = time.monotonic() - begun, os.times()
                assert expected in (None, scores), "the scores depend on the number of workers"
                expected = scores
                spent = after.user + after.system - own.user - own.system
                measured[workers].append((wall, processor_seconds(pool.pids()) - before, spent, os.getloadavg()[0]))
        table = Table(title=f"{door}: {len(items)} answers, {options.rounds} alternating rounds", title_justify="left")
        for column in ("workers", "answers/s, best", "median", "ratio, best", "worker CPU s", "caller CPU s", "load"):
            table.add_column(column, justify="right")
        first = min(each[0] for each in next(iter(measured.values())))
        for workers, rounds in measured.items():
            walls, used, caller, load = zip(*rounds, strict=True)
            rates = (f"{len(items) / min(walls):.0f}", f"{len(items) / statistics.median(walls):.0f}")
            rest = (statistics.median(used), statistics.median(caller), statistics.median(load))
            table.add_row(f"{workers}", *rates, f"{first / min(walls):.2f}", *(f"{value:.2f}" for value in rest))
        console.print(table)
    math.pools.close()


if __name__ == "__main__":
    main()
