"""The learning-rate search: the same rates and seeds for every algorithm, seeds that the results do not report.

Which runs the results report follows from the search, so recognising a record as one of today's settings does too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from unify_posttrain.measures.intervals import t_interval
from unify_posttrain.study.grid import EVALUATION, SEARCH, Grid, Run
from unify_posttrain.study.outcomes import measure, read_metrics
from unify_posttrain.study.records import METRICS, Record


@dataclass(frozen=True)
class Search:
    """Mean accuracy of each rate over the search seeds that finished (None: none did), and the best rate (None: none is known)."""

    accuracy: dict[float | None, float | None]
    chosen: float | None


Searches: TypeAlias = dict[tuple[str, str], Search]  # (task, algorithm) -> its search


def search_results(grid: Grid, records: Sequence[Record]) -> Searches:
    """What the searches in the folder say so far; empty if there is one rate only."""
    found: dict[tuple[str, str], dict[float | None, list[float | None]]] = {}
    for record in records:
        if record.purpose == SEARCH and is_current(grid, {}, record):
            rates = found.setdefault((record.task, record.algorithm), {rate: [] for rate in grid.learning_rates})
            if record.finished:
                outcome = measure(read_metrics(grid.folder / "runs" / record.name / METRICS))
                rates[record.learning_rate].append(outcome.after(grid.splits[0]))
    return {
        pair: _best({rate: t_interval(values, grid.confidence).mean for rate, values in rates.items()})
        for pair, rates in found.items()
    }


def _best(accuracy: dict[float | None, float | None]) -> Search:
    """Of equal rates the one that is listed first."""
    known = {rate: mean for rate, mean in accuracy.items() if mean is not None}
    return Search(accuracy, max(known, key=lambda rate: known[rate]) if known else None)


def evaluation_run(grid: Grid, searches: Searches, task: str, algorithm: str, seed: int) -> Run | None:
    """The run whose result is reported; None if the search has not found a rate for it (yet)."""
    if not grid.searches:
        return grid.run(task, algorithm, seed, grid.learning_rates[0])
    search = searches.get((task, algorithm))
    return None if search is None or search.chosen is None else grid.run(task, algorithm, seed, search.chosen)


def is_current(grid: Grid, searches: Searches, record: Record) -> bool:
    """Whether the record is of a run that today's settings would make, with whatever seed."""
    if record.task not in grid.defined_tasks or record.algorithm not in grid.defined_algorithms:
        return False
    if record.purpose == SEARCH:
        if not grid.searches or record.learning_rate not in grid.learning_rates or record.seed not in grid.search_seeds:
            return False
        return record.is_of(grid.run(record.task, record.algorithm, record.seed, record.learning_rate, SEARCH))
    if grid.searches and record.seed in grid.search_seeds:
        return False  # its rate was chosen for this seed
    run = evaluation_run(grid, searches, record.task, record.algorithm, record.seed)
    return record.purpose == EVALUATION and run is not None and record.is_of(run)


def describe_search(grid: Grid) -> str:
    """One paragraph for the results: what was tuned, and how."""
    rates = ", ".join("as the task's model sets it" if rate is None else f"{rate:g}" for rate in grid.learning_rates)
    untuned = (
        "Every other setting is that of the algorithm's file in conf/algorithm or of conf/study.yaml, not tuned for this task."
    )
    if not grid.searches:
        return f"Search: none. Every algorithm ran with one learning rate ({rates}), the same for all. {untuned}"
    seeds = ", ".join(map(str, grid.search_seeds))
    return (
        f"Search: the learning rate, for every algorithm and task out of the same {len(grid.learning_rates)} ({rates}), by mean "
        f"accuracy on {grid.splits[0]} over the search seeds ({seeds}), which are not the seeds reported. Search and report share "
        f"their test problems. {untuned}"
    )
