"""results.md: what a reader sees of a study."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any

from unify_posttrain.measures.intervals import Interval
from unify_posttrain.study.grid import SEARCH, Grid
from unify_posttrain.study.records import Record
from unify_posttrain.study.search import describe_search
from unify_posttrain.study.summary import Row, Summary, TaskSummary

NOTHING = "–"  # not measured


def markdown(grid: Grid, summary: Summary, invocations: Sequence[dict[str, Any]], figures: dict[str, list[str]]) -> str:
    """The whole document. `figures`: task -> file names beside it."""
    parts = ["# Study", *_head(grid, summary, invocations)]
    for task in summary.tasks:
        parts += [f"## {task.task}", *_task(grid, task, figures.get(task.task, []))]
    parts += _unfinished(summary)
    parts += _excluded(summary.excluded)
    parts += _commands(summary, invocations)
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(grid: Grid, summary: Summary, invocations: Sequence[dict[str, Any]]) -> list[str]:
    records = [result.record for result in summary.results]
    finished = [record for record in records if record.finished]
    seeds = sorted({record.seed for record in records if record.purpose != SEARCH})
    lines = [
        f"- Runs: {len(finished)} finished, {len(records) - len(finished)} failed or interrupted, "
        f"{sum(len(seeds) for task in summary.tasks for seeds in task.missing.values())} not made yet.",
        f"- Seeds: {', '.join(map(str, seeds)) or 'none'}. A seed changes the order of the data and the rollouts; base model and "
        "test problems are the same for all.",
        f"- Common settings of all runs: `{' '.join(grid.common)}`.",
        f"- {describe_search(grid)}",
        f"- Settings of single algorithms: {_own_overrides(grid, records)}.",
        f"- Duration: {duration(sum(record.seconds for record in records))} of runs (up to {grid.parallel} side by side), "
        f"{duration(sum(entry['seconds'] for entry in invocations))} by the clock (commands: {len(invocations)}).",
        f"- Code: {_code(records)}",
    ]
    return ["\n".join(lines), _how_to_read(grid)]


def _own_overrides(grid: Grid, records: Sequence[Record]) -> str:
    """What algorithms in the tables are given beyond their configuration file."""
    reported = {record.algorithm for record in records}
    own = {name: overrides[1:] for name, overrides in grid.defined_algorithms.items() if name in reported and overrides[1:]}
    return "; ".join(f"{name} `{' '.join(overrides)}`" for name, overrides in own.items()) or "none"


def _how_to_read(grid: Grid) -> str:
    level, first = f"{grid.confidence:.0%}", grid.splits[0]
    return (
        f"Accuracy in % of the split's test problems, greedy. `±` is the half-width of the {level} interval over seeds, "
        f"t({(1 + grid.confidence) / 2:g}; n-1) · s / √n with the unbiased standard deviation s; one seed has none. The last "
        f"column is the mean over seeds of (accuracy on {first}) - (that of `{grid.baseline}` with the same seed), in points, "
        "with the same interval on the differences; `*`: it excludes 0. Intervals cover the seeds, not the choice of test problems "
        "or base model, and are not corrected for the number of comparisons. Demonstrations: rows trained on one, replays "
        "included. Training seconds: all steps, without start-up; runs side by side slow each other. "
        f"{NOTHING}: not measured."
    )


def _code(records: Sequence[Record]) -> str:
    kinds = sorted({(str(record.versions.get("unify-posttrain")), record.source) for record in records})
    text = "; ".join(f"unify-posttrain {version}, source {source}" for version, source in kinds) or "no runs"
    mixed = " **Runs of different code are mixed in these tables.**" if len(kinds) > 1 else ""
    return f"{text}.{mixed}"


def _task(grid: Grid, task: TaskSummary, figures: Sequence[str]) -> list[str]:
    parts = [grid.notes.get(task.task, "")]
    parts.append(_table(_columns(grid), [cells_of(grid, row) for row in task.rows]) if task.rows else "No run has ended yet.")
    if task.shared:
        parts.append("Equal in all of these runs: " + ", ".join(f"`{key}={value}`" for key, value in task.shared.items()) + ".")
    for key, values in task.unequal.items():
        said = "; ".join(f"{value} for {', '.join(algorithms)}" for value, algorithms in values.items())
        parts.append(f"**Not equal:** `{key}` is {said}.")
    if task.searches:
        parts.append(_search_table(grid, task))
    if task.missing:
        runs = "; ".join(f"{algorithm} {', '.join(map(str, seeds))}" for algorithm, seeds in task.missing.items())
        parts.append(f"Not made yet (algorithm and seeds): {runs}.")
    parts += [f"![{name}]({name})" for name in figures]
    return parts


def _columns(grid: Grid) -> list[str]:
    first, *others = grid.splits
    return [
        "algorithm", "seeds", f"{first}: before", f"{first}: after", *others, "demonstrations", "tokens generated", "training s",
        f"{first} - {grid.baseline}",
    ]  # fmt: skip


def cells_of(grid: Grid, row: Row) -> list[str]:
    first, *others = grid.splits
    seeds = str(len(row.seeds)) + (f" ({len(row.unfinished)} unfinished)" if row.unfinished else "")
    versus = row.versus_baseline
    if row.algorithm == grid.baseline:
        difference = "baseline"
    elif versus.n == 0:
        difference = NOTHING
    else:
        pairs = "" if versus.n == len(row.seeds) else f" (n={versus.n})"
        difference = percent(versus, sign="+") + ("*" if excludes_zero(versus) else "") + pairs
    before = row.before[first]
    return [
        row.algorithm,
        seeds,
        NOTHING if before is None else f"{100 * before:.1f}",
        percent(row.after[first]),
        *(percent(row.after[split]) for split in others),
        count(row.demonstrations) + (f" + {count(row.hint_tokens)} hint tokens" if row.hint_tokens else ""),
        count(row.tokens_generated),
        count(row.training_seconds),
        difference,
    ]


def _search_table(grid: Grid, task: TaskSummary) -> str:
    rows = []
    for algorithm, search in task.searches.items():
        cells = []
        for rate in grid.learning_rates:
            mean = search.accuracy.get(rate)
            cell = NOTHING if mean is None else f"{100 * mean:.1f}"
            cells.append(f"**{cell}**" if rate == search.chosen else cell)
        rows.append([algorithm, *cells])
    table = _table(["learning rate", *(f"{rate:g}" for rate in grid.learning_rates)], rows)
    return f"Search, accuracy on {grid.splits[0]} over the search seeds, chosen rate in bold:\n\n{table}"


def _unfinished(summary: Summary) -> list[str]:
    parts = []
    for record in (result.record for result in summary.results if not result.record.finished):
        exit_code = "" if record.exit_code is None else f", exit code {record.exit_code}"
        last_step = NOTHING if record.final_step is None else record.final_step
        log = "\n".join(record.log_tail) or "(the log is empty)"
        parts.append(f"### {record.name}: {record.status}{exit_code}, after {duration(record.seconds)}, last step {last_step}")
        parts.append(f"`{record.log}` ends with\n\n````\n{log}\n````")  # four backticks: a log may hold three
    return ["## Runs that did not finish", *parts] if parts else []


def _excluded(records: Sequence[Record]) -> list[str]:
    if not records:
        return []
    lines = [f"- {record.name}: {record.status}, {record.started}" for record in records]
    return [
        "## Runs with other settings",
        "In the folder, but with overrides that the present configuration does not give; in none of the tables.",
        "\n".join(lines),
    ]


def _commands(summary: Summary, invocations: Sequence[dict[str, Any]]) -> list[str]:
    started = [
        f"# {entry['started']}, {duration(entry['seconds'])}: {entry['status']}\n{entry['command']}" for entry in invocations
    ]
    parts = ["## Commands", "The study:\n\n```bash\n" + "\n".join(started) + "\n```"]
    example = next((result.record for result in summary.results), None)
    if example is not None:
        arguments = " \\\n    ".join(shlex.quote(override) for override in example.overrides)
        parts.append(
            f"One of its runs ({example.name}); the command of every run is in results.json and in its record.json:\n\n"
            f"```bash\npython -m unify_posttrain.train {arguments}\n```"
        )
    return parts


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *("--:" for _ in columns[1:])], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(interval: Interval, sign: str = "") -> str:
    """`94.5 ± 3.2`, `94.5` for one seed."""
    if interval.mean is None:
        return NOTHING
    mean = f"{100 * interval.mean:{sign}.1f}"
    return mean if interval.half_width is None else f"{mean} ± {100 * interval.half_width:.1f}"


def excludes_zero(interval: Interval) -> bool:
    """Whether the interval exists and does not hold 0."""
    return interval.mean is not None and interval.half_width is not None and abs(interval.mean) > interval.half_width


def count(value: float | None) -> str:
    """A whole number with thin groups, e.g. 1 234 567."""
    return NOTHING if value is None else f"{value:,.0f}".replace(",", " ")


def duration(seconds: float) -> str:
    """`45 s`, `12 min 05 s`, `3 h 20 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
