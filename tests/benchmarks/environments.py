"""How fast the environments are, and a long game of a player that answers anything: no exception, and rewards of the table alone.

    python -m tests.benchmarks.environments [--turns 100000] [--seed 0]

Expect half a minute on one core. Every time is the best of several, since a busy machine only ever adds to it.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.tasks.environments import RandomPlayer, node, possible_rewards, task_settings
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.general_points import rows as hands
from unify_posttrain.tasks.general_points import solver
from unify_posttrain.tasks.general_points.cards import Hand
from unify_posttrain.tasks.general_points.environment import GeneralPoints
from unify_posttrain.tasks.matrix_rows import Settings as MatrixSettings
from unify_posttrain.tasks.matrix_rows import build_rows as matrix_rows
from unify_posttrain.tasks.navigation import rows as positions

ROUNDS = 3
ANSWERS = ("(1+2+3)*4", "((1+2)+3)*4", "4*(1+2+3", "1+2+3+4", "(1+2)(3+4)", "1+2+3", "8//3", "(1 + 2 + 3) * 4")


def best(run: Callable[[], Any], clear: Callable[[], Any] = lambda: None) -> float:
    """Seconds of the fastest of several runs."""
    times = []
    for _ in range(ROUNDS):
        clear()
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def solver_times() -> list[tuple[str, str]]:
    """The table of playable hands, the formulas of one hand, and the formulas of all."""
    table = best(lambda: solver.playable_values(13, 4, 24), solver.playable_values.cache_clear)
    multisets = list(itertools.combinations_with_replacement(range(1, 14), 4))
    every = best(lambda: [solver.solve(each, 24) for each in multisets], solver._solve.cache_clear)
    return [
        ("table of the 1820 value multisets that are playable", f"{table:.2f} s"),
        ("formulas of one hand, mean over all multisets", f"{1000 * every / len(multisets):.2f} ms"),
    ]


def verifier_times() -> list[tuple[str, str]]:
    """Answers per second, right and wrong ones in turn, with formulas that are remembered."""
    environment = make_environment(node("general_points"))
    assert isinstance(environment, GeneralPoints)
    hand = Hand(("A", "2", "3", "4"), "ten", 24, "native")
    texts = [f'{{\n  "cards": ["A", "2", "3", "4"],\n  "number": [1, 2, 3, 4],\n  "formula": "{left}=24"\n}}' for left in ANSWERS]
    turns = 2000

    def verify() -> None:
        for number in range(turns):
            environment.verifier.judge(texts[number % len(texts)], hand)

    def play() -> None:
        row = {"reward_model": {"ground_truth": '{"cards": ["A", "2", "3", "4"], "rule": "ten", "target": 24, "style": "native"}'}}
        for number in range(turns):
            environment.reset(row)
            environment.step(texts[number % len(texts)], True)
            environment.fields()

    return [
        ("answers verified", f"{turns / best(verify):,.0f} per second"),
        ("episodes of one turn: reset, step, fields", f"{turns / best(play):,.0f} per second"),
    ]


def rows_of(task: str) -> list[dict[str, Any]]:
    """Rows to play with."""
    settings = task_settings(task)
    if task == "general_points":
        settings["rows"] = {"train": 2000, "gp_id": 200, "gp_id_seen": 0, "gp_ood": 800, "gp_ood_target": 200}
        return hands.build_rows(hands.Settings.from_node(settings))
    if task == "navigation":
        settings["routes"] = {"train": 100, "nav_id": 20, "nav_ood": 20, "nav_city": 20}
        return positions.build_rows(positions.Settings.from_node(settings))
    return matrix_rows(MatrixSettings.from_node(settings))


def navigation_time() -> list[tuple[str, str]]:
    """Rows of the shipped settings."""
    settings = positions.Settings.from_node(task_settings("navigation"))
    began = time.perf_counter()
    made = len(positions.build_rows(settings))
    return [("navigation rows", f"{10_000 * (time.perf_counter() - began) / made:.2f} s per 10,000 ({made} made)")]


def play(task: str, turns: int, seed: int) -> tuple[int, float, Counter[str]]:
    """Turns played, seconds, and how often each outcome came up.

    Raises:
        AssertionError: a reward that is not in the table, or a judge that failed.
    """
    rows, player, environment = rows_of(task), RandomPlayer(seed), make_environment(node(task))
    known, played, outcomes = possible_rewards(task), 0, Counter[str]()
    began = time.perf_counter()
    for row in itertools.cycle(rows):
        for step in player.play(environment, row, 9):
            assert step.reward in known, (step, row)
            played += 1
        fields = environment.fields()
        assert fields["faults"] == 0, row
        outcomes.update({key.removeprefix("outcome_"): int(value) for key, value in fields.items() if key.startswith("outcome_")})
        if played >= turns:
            return played, time.perf_counter() - began, outcomes
    raise AssertionError("there are no rows")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    console = Console()
    speed = Table("what", "measured", title="speed, one core")
    for line in [*solver_times(), *verifier_times(), *navigation_time()]:
        speed.add_row(*line)
    console.print(speed)
    table = Table("environment", "turns", "seconds", "outcomes", title="a player that answers anything")
    for task in ("general_points", "navigation", "matrices"):
        played, seconds, outcomes = play(task, arguments.turns, arguments.seed)
        said = ", ".join(f"{name} {count}" for name, count in outcomes.most_common())
        table.add_row(task, str(played), f"{seconds:.1f}", said)
    console.print(table)


if __name__ == "__main__":
    main()
