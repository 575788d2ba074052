"""What the wrapper around a reward function costs: cheap rewards called bare, and through the wrapper, in the same run.

    python -m tests.benchmarks.reward_wrapper [--rewards 1024] [--rounds 9] [--workers 2]

Expect a few seconds. Every round times all three ways one after the other; the table has the medians. Wall time is that of the
machine as it is: on one that is busy, look at the processor time, which is that of the caller and of all workers together.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from unify_posttrain.config import compose_config
from unify_posttrain.rewards.calling import Gatherer, ProcessCaller
from unify_posttrain.rewards.loading import load_function
from unify_posttrain.rewards.protection import Protection

FUNCTION = """
def compute_score(data_source, solution_str, ground_truth, extra_info):
    right = solution_str.strip() == ground_truth
    return {"score": float(right), "acc": float(right), "pred": solution_str}
"""


def milliseconds(run: Callable[[], Any]) -> float:
    """Wall time of a call."""
    began = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - began)


def processor_milliseconds(sessions: Sequence[int]) -> float:
    """Of this process and of all processes of some sessions, since they began."""
    total = sum(os.times()[:2])
    for folder in Path("/proc").iterdir():
        try:
            fields = (folder / "stat").read_text(encoding="utf-8").rpartition(")")[2].split() if folder.name.isdigit() else []
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields and int(fields[3]) in sessions:
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 1000 * total


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rewards", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    calls = [
        {
            "data_source": "sums",
            "solution_str": f"{'3+4+0=07 ' * 8}{number}",
            "ground_truth": str(number),
            "extra_info": {"index": number},
        }
        for number in range(options.rewards)
    ]
    protection = Protection.from_node({**compose_config([]).reward.protection, "workers": options.workers})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "cheap.py"
        file.write_text(FUNCTION, encoding="utf-8")
        node = {"path": str(file), "name": "compute_score"}
        function, caller = load_function(node), ProcessCaller(node, protection)
        gatherer = Gatherer(caller)

        async def gathered() -> None:
            await asyncio.gather(*map(gatherer.score, calls))

        ways: dict[str, Callable[[], Any]] = {
            "bare function": lambda: [function(**call) for call in calls],
            "wrapper, as one batch": lambda: caller(calls),
            "wrapper, row by row as verl's managers call it": lambda: asyncio.run(gathered()),
        }
        for run in ways.values():
            run()  # starts the processes
        times: dict[str, list[float]] = {name: [] for name in ways}
        spent = dict.fromkeys(ways, 0.0)
        for _ in range(options.rounds):
            for name, run in ways.items():
                before = processor_milliseconds(caller.pool.pids())
                times[name].append(milliseconds(run))
                spent[name] += (processor_milliseconds(caller.pool.pids()) - before) / options.rounds
        caller.close()
    medians = {name: statistics.median(values) for name, values in times.items()}
    table = Table(title=f"{options.rewards} rewards, {options.workers} processes", title_justify="left")
    for column in ("way", "ms, median", "ms, fastest and slowest", "ms on top", "ms of processors, mean"):
        table.add_column(column)
    bare = medians["bare function"]
    for name, median in medians.items():
        extremes = f"{min(times[name]):.1f} … {max(times[name]):.1f}"
        table.add_row(name, f"{median:.1f}", extremes, "" if median == bare else f"{median - bare:.1f}", f"{spent[name]:.0f}")
    Console(width=132).print(table)


if __name__ == "__main__":
    main()
