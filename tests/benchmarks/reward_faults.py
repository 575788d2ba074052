"""The fault drill of the reward: thousands of answers of which some hang, crash or explode in memory, against the same without.

    python -m tests.benchmarks.reward_faults [--answers 10000] [--faults 0.01] [--workers 2] [--timeout 2.0]

Expect two to three minutes on 2 cores. All other answers have to be scored as they are without faults, the extra time should be no
more than the timeouts, and no process may be left.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.rewards import mischief
from unify_posttrain.rewards.grading import grade_item
from unify_posttrain.rewards.pool import KillablePool, Outcome

FAULTS = {"spin": "timeout", "sleep": "timeout", "segfault": "crash", "exit": "crash", "memory": "memory"}
MEMORY_MB = 1024


def act_or_grade(item: Mapping[str, Any]) -> Any:
    """Do mischief if the item asks for it, else grade."""
    return mischief.act([item["act"], None]) if "act" in item else grade_item(item)


def answers(count: int, seed: int) -> list[dict[str, Any]]:
    """Responses as a model would write them: whole numbers, fractions and formulas in a box, about half of them right."""
    generator = random.Random(seed)
    items = []
    for _ in range(count):
        a, b, slip = generator.randint(2, 99), generator.randint(2, 99), generator.choice([0, 0, 1])
        answer, gold = generator.choice(
            [
                (f"{a * b + slip}", f"{a * b}"),
                (f"\\frac{{{a + slip}}}{{{b}}}", f"{a}/{b}"),
                (f"x^2+{a + slip}x+{b}", f"{b}+{a}x+x^2"),
                (f"({a},{b + slip})", f"\\left({a}, {b}\\right)"),
            ]
        )
        items.append({"text": f"We compute.\n\\boxed{{{answer}}}", "gold": gold, "version": 6})
    return items


def left_processes() -> list[str]:
    """Command lines of workers that are still there."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
            if "unify_posttrain.rewards.worker tests.benchmarks.reward_faults" in command:
                found.append(command)
    return found


def timed(items: list[dict[str, Any]], workers: int, timeout: float) -> tuple[list[Outcome], float, float]:
    """(outcomes, wall seconds without the start, CPU seconds of this process, which hands out and collects)."""
    with KillablePool("tests.benchmarks.reward_faults:act_or_grade", workers, timeout, MEMORY_MB) as pool:
        pool.map(items[: 4 * workers])  # start all workers
        started, before = time.monotonic(), os.times()
        outcomes = pool.map(items)
        wall = time.monotonic() - started
        after = os.times()
    return outcomes, wall, after.user + after.system - before.user - before.system


def main() -> None:
    """Run the drill and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--faults", type=float, default=0.01)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--timeout", type=float, default=2.0)
    options = parser.parse_args()
    clean = answers(options.answers, seed=0)
    generator = random.Random(1)
    faulty: list[dict[str, Any]] = [dict(item) for item in clean]
    struck = generator.sample(range(len(clean)), round(options.faults * len(clean)))
    kinds = list(FAULTS)
    for number, position in enumerate(struck):
        faulty[position] = {"act": kinds[number % len(kinds)]}
    expected, clean_wall, overhead = timed(clean, options.workers, options.timeout)
    got, wall, _ = timed(faulty, options.workers, options.timeout)
    others = [index for index in range(len(clean)) if index not in set(struck)]
    wrong = sum(got[index] != expected[index] for index in others)
    reported = sum(got[position].fault == FAULTS[faulty[position]["act"]] for position in struck)
    waits = sum(outcome.fault == "timeout" for outcome in got) * options.timeout / options.workers
    rate, rest = len(clean) / clean_wall, (wall - waits) / clean_wall
    table = Table(title="Reward fault drill", title_justify="left", show_header=False)
    for name, value in {
        "answers, workers": f"{len(clean)}, {options.workers}",
        "faults": f"{len(struck)} ({', '.join(kinds)}), of which reported as what they were: {reported}",
        "other answers scored differently": str(wrong),
        "clean run": f"{clean_wall:.1f} s, {rate:.0f} answers/s, {rate / options.workers:.0f} per worker",
        "caller's own share of it": f"{overhead / clean_wall:.0%} of one core",
        "run with faults": f"{wall:.1f} s, of which timeouts {waits:.1f} s; the rest is {rest:.2f} of the clean run",
        "processes left": str(len(left_processes())),
    }.items():
        table.add_row(name, value)
    Console(width=132).print(table)


if __name__ == "__main__":
    main()
