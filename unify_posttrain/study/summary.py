"""From the records in a study's folder to one row per task and algorithm.

A row averages runs of today's settings and nothing else: runs of other settings are named, not averaged in; failed and
missing runs are named too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from unify_posttrain.measures.intervals import Interval, paired_difference, t_interval
from unify_posttrain.study.grid import EVALUATION, Grid
from unify_posttrain.study.outcomes import Outcome, measure, read_metrics
from unify_posttrain.study.records import METRICS, Record
from unify_posttrain.study.search import Search, Searches, evaluation_run, is_current, search_results


@dataclass(frozen=True)
class Result:
    """An ended run and what it achieved; `outcome` is None for one that did not finish."""

    record: Record
    outcome: Outcome | None


@dataclass(frozen=True)
class Row:
    """One algorithm on one task. Accuracies are shares in [0, 1]; counts and seconds are means over the finished seeds."""

    algorithm: str
    learning_rate: float | None
    seeds: tuple[int, ...]  # of finished runs
    unfinished: tuple[int, ...]  # of runs that failed, took too long or were interrupted
    before: dict[str, float | None]  # split -> mean at step 0
    after: dict[str, Interval]  # split -> at the end
    versus_baseline: Interval  # on the first split, paired by seed
    demonstrations: float | None
    hint_tokens: float | None
    tokens_generated: float | None
    training_seconds: float | None
    run_seconds: float | None
    curves: dict[int, dict[int, float]]  # seed -> {step: accuracy on the first split}


@dataclass(frozen=True)
class TaskSummary:
    """A task's rows, best first, and what a reader has to know about them."""

    task: str
    rows: list[Row]
    missing: dict[str, list[int]]  # algorithm -> seeds of this command that have no record with today's settings
    shared: dict[str, Any]  # settings that are equal in all runs
    unequal: dict[str, dict[str, list[str]]]  # key -> {value: algorithms}, where they are not
    searches: dict[str, Search]  # algorithm -> its search


@dataclass(frozen=True)
class Summary:
    """All of a study: `results` are the reported runs and those of the search, `excluded` records are of other settings."""

    tasks: list[TaskSummary]
    results: list[Result]
    excluded: list[Record]


def summarise(grid: Grid, records: Sequence[Record]) -> Summary:
    """Everything that the report says, from the records and the metrics beside them."""
    searches = search_results(grid, records)
    current = [record for record in records if is_current(grid, searches, record)]
    names = {record.name for record in current}
    results = [Result(record, _outcome(grid, record) if record.finished else None) for record in current]
    tasks = [_summarise_task(grid, task, results, searches) for task in grid.defined_tasks]
    return Summary(
        tasks=[task for task in tasks if task.rows or task.missing],
        results=results,
        excluded=[record for record in records if record.name not in names],
    )


def _outcome(grid: Grid, record: Record) -> Outcome:
    return measure(read_metrics(grid.folder / "runs" / record.name / METRICS))


def _summarise_task(grid: Grid, task: str, results: Sequence[Result], searches: Searches) -> TaskSummary:
    reported = [result for result in results if result.record.task == task and result.record.purpose == EVALUATION]
    by_algorithm = {
        algorithm: [result for result in reported if result.record.algorithm == algorithm] for algorithm in grid.defined_algorithms
    }
    baseline = _by_seed(grid, by_algorithm[grid.baseline])
    rows = [_row(grid, algorithm, own, baseline) for algorithm, own in by_algorithm.items() if own]
    shared, unequal = _compare_settings(grid, reported)
    return TaskSummary(
        task=task,
        rows=sorted(rows, key=lambda row: (row.after[grid.splits[0]].mean is None, -(row.after[grid.splits[0]].mean or 0.0))),
        missing=_missing(grid, task, searches, {result.record.name for result in reported}),
        shared=shared,
        unequal=unequal,
        searches={algorithm: search for (of, algorithm), search in searches.items() if of == task},
    )


def _row(grid: Grid, algorithm: str, results: Sequence[Result], baseline: dict[int, float | None]) -> Row:
    finished = [result for result in results if result.outcome is not None]
    outcomes = [result.outcome for result in finished if result.outcome is not None]

    def mean(values: Iterable[float | None]) -> float | None:
        return t_interval(list(values), grid.confidence).mean

    return Row(
        algorithm=algorithm,
        learning_rate=results[0].record.learning_rate,
        seeds=tuple(sorted(result.record.seed for result in finished)),
        unfinished=tuple(sorted(result.record.seed for result in results if result.outcome is None)),
        before={split: mean(outcome.before(split) for outcome in outcomes) for split in grid.splits},
        after={split: t_interval([outcome.after(split) for outcome in outcomes], grid.confidence) for split in grid.splits},
        versus_baseline=paired_difference(_by_seed(grid, finished), baseline, grid.confidence),
        demonstrations=mean(outcome.demonstrations for outcome in outcomes),
        hint_tokens=mean(outcome.hint_tokens for outcome in outcomes),
        tokens_generated=mean(outcome.tokens_generated for outcome in outcomes),
        training_seconds=mean(outcome.training_seconds for outcome in outcomes),
        run_seconds=mean(result.record.seconds for result in finished),
        curves={
            result.record.seed: result.outcome.accuracy.get(grid.splits[0], {}) for result in finished if result.outcome is not None
        },
    )


def _by_seed(grid: Grid, results: Sequence[Result]) -> dict[int, float | None]:
    """Seed -> final accuracy on the first split."""
    return {result.record.seed: result.outcome.after(grid.splits[0]) for result in results if result.outcome is not None}


def _missing(grid: Grid, task: str, searches: Searches, recorded: set[str]) -> dict[str, list[int]]:
    """Runs that this command asks for and that have no record: not started, or without a rate from the search."""
    missing: dict[str, list[int]] = {}
    for algorithm in grid.algorithms if task in grid.tasks else ():
        for seed in grid.seeds:
            run = evaluation_run(grid, searches, task, algorithm, seed)
            if run is None or run.name not in recorded:
                missing.setdefault(algorithm, []).append(seed)
    return missing


def _compare_settings(grid: Grid, results: Sequence[Result]) -> tuple[dict[str, Any], dict[str, dict[str, list[str]]]]:
    """Which of the `equal` keys are, and who has what where they are not. The rate that a search chose is shown with the search."""
    shared: dict[str, Any] = {}
    unequal: dict[str, dict[str, list[str]]] = {}
    for key in grid.equal:
        values: dict[str, list[str]] = {}
        for result in results:
            algorithms = values.setdefault(str(result.record.settings.get(key)), [])
            if result.record.algorithm not in algorithms:
                algorithms.append(result.record.algorithm)
        if len(values) == 1:
            shared[key] = next(iter(values))
        elif values:
            unequal[key] = values
    return shared, unequal
