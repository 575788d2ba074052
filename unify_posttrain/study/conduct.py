"""Make the runs of a study that are not made yet, and write its results."""

from __future__ import annotations

import fcntl
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from unify_posttrain.output import Lines
from unify_posttrain.study.grid import Grid, Run, effective_settings
from unify_posttrain.study.outcomes import read_metrics
from unify_posttrain.study.processes import FINISHED, Ended, Job, Limits, Stop, run_jobs, stop_on_signals
from unify_posttrain.study.records import (
    LOG,
    METRICS,
    make_record,
    read_record,
    read_records,
    record_path,
    source_digest,
    tail,
    write_record,
)
from unify_posttrain.study.report import append_invocation, write_report
from unify_posttrain.study.search import evaluation_run, search_results
from unify_posttrain.study.tables import duration

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Commands:
    """The commands that a run is made of; overrides are appended."""

    train: tuple[str, ...] = (sys.executable, "-m", "unify_posttrain.train")
    prepare: tuple[str, ...] = (sys.executable, "-m", "unify_posttrain.prepare")


Settings = Callable[[Run, Sequence[str]], dict[str, Any]]


def conduct(grid: Grid, command: str, commands: Commands | None = None, settings: Settings = effective_settings) -> int:
    """Make what is missing, then write the results; they are written after an interruption, too.

    Args:
        grid: what to run.
        command: how the user asked for it, for the record.
        commands, settings: of a run; tests replace them.

    Returns:
        Exit code: 0 if every run asked for has finished, 1 if one has not, 128 + number of the signal that ended it.

    Raises:
        ValueError: an algorithm's overrides do not compose.
        RuntimeError: another study works in the same folder.
    """
    study = _Study(grid, commands or Commands(), settings)
    started, clock = datetime.now(timezone.utc).isoformat(timespec="seconds"), time.monotonic()
    if not study.pending():
        logger.info("nothing to run: every run asked for is finished")
        write_report(grid)
        return 0
    study.check()
    with locked(grid.folder), stop_on_signals() as stop:
        try:
            study.make(stop)
        finally:
            missing = len(study.pending())
            status = f"{missing} runs not finished" if missing else "complete"
            status = f"stopped by signal {stop.signal}, {status}" if stop.signal else status
            seconds = round(time.monotonic() - clock, 3)
            append_invocation(grid.folder, {"command": command, "started": started, "seconds": seconds, "status": status})
            write_report(grid)
    return 128 + stop.signal if stop.signal else int(bool(missing))


class _Study:
    """The runs of a grid, and how each is made."""

    def __init__(self, grid: Grid, commands: Commands, settings: Settings) -> None:
        self.grid, self.commands, self._compose = grid, commands, settings
        self.limits = Limits(grid.parallel, grid.timeout_seconds, grid.grace_seconds, grid.poll_seconds)
        self.environment = {**os.environ, **grid.environment, "UNIFY_HOME": str(grid.folder)}
        self._settings: dict[tuple[str, ...], dict[str, Any]] = {}

    def pending(self) -> list[Run | None]:
        """Runs asked for that are not finished: those of the search, then the evaluations (None: its rate is not known yet)."""
        return [*self._unfinished(self.grid.search_runs()), *self._evaluations()]

    def _evaluations(self) -> list[Run | None]:
        searches = search_results(self.grid, read_records(self.grid.folder))
        runs = [
            evaluation_run(self.grid, searches, task, algorithm, seed)
            for seed in self.grid.seeds  # seed by seed: a study that is cut short has all algorithms
            for task, algorithm in self.grid.pairs()
        ]
        return [run for run in runs if run is None or not self._finished(run)]

    def _unfinished(self, runs: Sequence[Run]) -> list[Run]:
        return [run for run in runs if not self._finished(run)]

    def _finished(self, run: Run) -> bool:
        record = read_record(self.grid.folder, run.name)
        return record is not None and record.finished and record.is_of(run)

    def check(self) -> None:
        """Compose every algorithm that will run, so that a typing error is met now and not after hours."""
        rate = self.grid.learning_rates[0]
        for task, algorithm in self.grid.pairs():
            self.settings_of(self.grid.run(task, algorithm, self.grid.seeds[0], rate))

    def settings_of(self, run: Run) -> dict[str, Any]:
        """Values of the `equal` keys, composed once for all seeds."""
        key = (run.task, run.algorithm, str(run.learning_rate))
        if key not in self._settings:
            self._settings[key] = self._compose(run, self.grid.equal)
        return self._settings[key]

    def make(self, stop: Stop) -> None:
        """Prepare the tasks, search, evaluate."""
        unprepared = self._prepare(stop)
        self._train(self._unfinished(self.grid.search_runs()), unprepared, stop)
        self._train([run for run in self._evaluations() if run is not None], unprepared, stop)

    def _prepare(self, stop: Stop) -> dict[str, Ended]:
        """Data and base model of every task, one after the other. Returns the tasks that could not be prepared."""
        due = {run.task for run in self.pending() if run is not None}
        jobs = [
            Job(
                task,
                (
                    *self.commands.prepare,
                    *self.grid.prepare_overrides(task),
                    f"hydra.run.dir={self.grid.folder}/hydra/prepare-{task}",
                ),
                self.grid.folder / f"prepare-{task}.log",
            )
            for task in self.grid.tasks
            if task in due
        ]
        failed: dict[str, Ended] = {}

        def note(ended: Ended) -> None:
            if ended.status == FINISHED:
                logger.info("%s: data and base model are ready (%s)", ended.job.name, duration(ended.seconds))
            else:
                failed[ended.job.name] = ended
                logger.error("%s: preparing failed; %s ends with\n%s", ended.job.name, ended.job.log, self._tail(ended.job))

        one_at_a_time = Limits(1, self.limits.timeout, self.limits.grace, self.limits.poll)
        run_jobs(jobs, self.environment, one_at_a_time, stop, note)
        return failed

    def _train(self, runs: Sequence[Run], unprepared: dict[str, Ended], stop: Stop) -> None:
        for run in runs:
            if run.task in unprepared:
                self._record(run, unprepared[run.task])
        runs = [run for run in runs if run.task not in unprepared]
        by_name = {run.name: run for run in runs}
        count = 0

        def note(ended: Ended) -> None:
            nonlocal count
            count += 1
            run = by_name[ended.job.name]
            self._record(run, ended)
            logger.info("[%d/%d] %s: %s after %s", count, len(runs), run.name, ended.status, duration(ended.seconds))
            if ended.status != FINISHED:
                logger.error("%s ends with\n%s", ended.job.log, self._tail(ended.job))

        run_jobs([self._job(run) for run in runs], self.environment, self.limits, stop, note)

    def _job(self, run: Run) -> Job:
        folder = record_path(self.grid.folder, run.name).parent
        return Job(run.name, (*self.commands.train, *run.overrides), folder / LOG, before=lambda: self._forget(run))

    def _forget(self, run: Run) -> None:
        """An old record must not vouch for the metrics of a new run that is cut short."""
        folder = record_path(self.grid.folder, run.name).parent
        for path in (record_path(self.grid.folder, run.name), folder / METRICS):
            path.unlink(missing_ok=True)

    def _record(self, run: Run, ended: Ended) -> None:
        metrics = read_metrics(record_path(self.grid.folder, run.name).parent / METRICS) if ended.job.name == run.name else {}
        record = make_record(
            run,
            ended,
            folder=self.grid.folder,
            settings=self.settings_of(run),
            source=source_digest(),
            final_step=max(metrics, default=None),
            tail_lines=self.grid.log_tail_lines,
        )
        write_record(self.grid.folder, record)

    def _tail(self, job: Job) -> Lines:
        return Lines("\n".join(tail(job.log, self.grid.log_tail_lines)))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One study at a time in a folder; the lock ends with the process.

    Raises:
        RuntimeError: another one is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"folder={folder}: another study is running there; wait for it, or choose another folder") from None
        yield
