"""The files of a study: results.json (everything), results.md (tables), figures."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unify_posttrain.output import cell
from unify_posttrain.redaction import redacted
from unify_posttrain.runs.files import write_text
from unify_posttrain.study.grid import Grid
from unify_posttrain.study.records import read_records
from unify_posttrain.study.search import describe_search
from unify_posttrain.study.summary import Summary, summarise
from unify_posttrain.study.tables import cells_of, markdown

logger = logging.getLogger(__name__)

JSON, MARKDOWN, INVOCATIONS = "results.json", "results.md", "invocations.jsonl"
FORMAT = 1  # raise it when the meaning of results.json changes


def write_report(grid: Grid) -> list[Path]:
    """Read the study's folder and (re)write its results; returns the files."""
    from unify_posttrain.study.plots import draw_task

    summary = summarise(grid, read_records(grid.folder))
    invocations = read_invocations(grid.folder)
    figures = {task.task: draw_task(grid, task, grid.folder) for task in summary.tasks}
    names = {task: [path.name for path in paths] for task, paths in figures.items()}
    content = as_json(grid, summary, invocations, names)
    files = [grid.folder / JSON, grid.folder / MARKDOWN]
    write_text(files[0], json.dumps(content, indent=2, allow_nan=False) + "\n")
    write_text(files[1], markdown(grid, summary, invocations, names))
    return files + [path for paths in figures.values() for path in paths]


def as_json(grid: Grid, summary: Summary, invocations: Sequence[dict[str, Any]], figures: dict[str, list[str]]) -> dict[str, Any]:
    """results.json: per run and aggregated; numbers that are not finite become null."""
    runs = [
        {**asdict(result.record), "outcome": None if result.outcome is None else asdict(result.outcome)}
        for result in summary.results
    ]
    return redacted(
        _plain(
            {
                "format": FORMAT,
                "study": {
                    "settings": asdict(grid) | {"folder": str(grid.folder)},
                    "search": describe_search(grid),
                    "invocations": list(invocations),
                    "run_seconds": sum(result.record.seconds for result in summary.results),
                    "clock_seconds": sum(entry["seconds"] for entry in invocations),
                    "interval": "mean ± t((1 + confidence)/2; n - 1) * s / sqrt(n) over seeds, s unbiased; null for one seed",
                },
                "tasks": {task.task: asdict(task) | {"figures": figures.get(task.task, [])} for task in summary.tasks},
                "runs": runs,
                "excluded": [asdict(record) for record in summary.excluded],
            }
        )
    )


def append_invocation(folder: Path, entry: dict[str, Any]) -> None:
    """Remember that a command ran: {"command", "started", "seconds", "status"}."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / INVOCATIONS, "a", encoding="utf-8") as file:
        file.write(json.dumps(redacted(entry)) + "\n")


def read_invocations(folder: Path) -> list[dict[str, Any]]:
    """The commands that have run in this folder, oldest first; a line cut short by a kill is left out."""
    path = folder / INVOCATIONS
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            logger.warning("%s: a line that was cut short is left out", path)
    return entries


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(grid: Grid) -> None:
    """A short table per task on the terminal, and where the rest is."""
    import sys

    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 110)
    summary = summarise(grid, read_records(grid.folder))
    for task in summary.tasks:
        table = Table(title=cell(f"{task.task}, accuracy on {grid.splits[0]}"), title_justify="left")
        for column in ("algorithm", "seeds", "before", "after", f"against {grid.baseline}"):
            table.add_column(cell(column), justify="left" if column == "algorithm" else "right")
        for row in task.rows:
            cells = cells_of(grid, row)
            table.add_row(*map(cell, (*cells[:4], cells[-1])))
        console.print(table)
    unfinished = [result.record.name for result in summary.results if not result.record.finished]
    if unfinished:
        console.print(cell(f"did not finish: {', '.join(unfinished)}", style="red"), soft_wrap=True)
    console.print(cell(f"results: {grid.folder / MARKDOWN}"), soft_wrap=True)
