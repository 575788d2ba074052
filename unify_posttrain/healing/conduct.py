"""Run the steps that are missing, in order, and write the page. A step that has finished is not run again."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from unify_posttrain.analysis.forgetting import halves, peak_of, shared, shares_on
from unify_posttrain.analysis.sweeps import open_sweep, scores
from unify_posttrain.healing.page import write_page
from unify_posttrain.healing.plan import Chosen, Healing, Step, first_steps, later_steps, sft_name
from unify_posttrain.healing.records import Done, begin, finished, read_done, write
from unify_posttrain.output import Lines
from unify_posttrain.redaction import redacted_overrides
from unify_posttrain.study.conduct import locked
from unify_posttrain.study.processes import FINISHED, Ended, Job, Limits, Stop, run_jobs, stop_on_signals
from unify_posttrain.study.records import source_digest, tail
from unify_posttrain.study.tables import duration

logger = logging.getLogger(__name__)

PYTHON = (sys.executable, "-m")


def conduct(healing: Healing, python: Sequence[str] = PYTHON) -> int:
    """Run what is missing, then write the page of what is there; it is written after an interruption, too.

    Args:
        healing: what to do.
        python: what a module of this package is run with; tests replace it.

    Returns:
        Exit code: 0 if every step has finished, 1 if one has not, 128 + number of the signal that ended it.

    Raises:
        RuntimeError: another one works in the same folder.
    """
    chain = _Chain(healing, python)
    with locked(healing.folder), stop_on_signals() as stop:
        try:
            for group in first_steps(healing):
                chain.make(group, stop)
            chosen = chosen_starts(healing)
            for group in later_steps(healing, chosen):
                chain.make(group, stop)
        finally:
            missing = missing_steps(healing)
            write_page(healing, chosen_starts(healing), read_done(healing), missing)
    if stop.signal:
        return 128 + stop.signal
    if missing:
        logger.error("%d steps have not finished: %s", len(missing), ", ".join(missing[:5]))
    return int(bool(missing))


def missing_steps(healing: Healing) -> list[str]:
    """Names of the steps that have not finished; those behind peaks that are not known yet count as one."""
    chosen = chosen_starts(healing)
    steps = [step for group in (*first_steps(healing), *later_steps(healing, chosen)) for step in group]
    unknown = [f"RL of seed {seed}" for seed in healing.seeds if seed not in chosen]
    return [step.name for step in steps if not finished(healing, step)] + unknown


def chosen_starts(healing: Healing) -> dict[int, dict[str, int]]:
    """Seed -> start -> step, of the seeds whose fine-tuning was evaluated: the peak as `analyze forgetting` will choose it."""
    evaluations = healing.folder / "evaluations"
    done = {step.name: step for group in first_steps(healing) for step in group}
    found: dict[int, dict[str, int]] = {}
    for seed in healing.seeds:
        if not finished(healing, done[f"evaluate-{sft_name(seed)}"]):
            continue
        curve = scores(open_sweep("sft", sft_name(seed), evaluations), healing.ood)
        problems = shared([curve])
        chosen_on = halves(problems, healing.split_seed)[0] if healing.select == "half" else problems
        steps = {start: int(start) for start in healing.starts if start.isdigit()}
        absent = sorted(set(steps.values()) - set(curve))
        if absent:
            known = ", ".join(map(str, sorted(curve)))
            raise ValueError(f"starts: step {absent[0]} of fine-tuning was not evaluated; choose among base, peak, end, {known}")
        found[seed] = {"base": 0, "peak": peak_of(shares_on(curve, chosen_on)), "end": max(curve), **steps}
    return found


class _Chain:
    """The steps of a group after each other, as many side by side as are allowed."""

    def __init__(self, healing: Healing, python: Sequence[str]) -> None:
        self.healing, self.python, self.source = healing, tuple(python), source_digest()
        self.limits = Limits(healing.parallel, healing.timeout_seconds, healing.grace_seconds, healing.poll_seconds)
        self.environment = {**os.environ, **healing.environment, "UNIFY_HOME": str(healing.folder)}
        self.finished: set[str] = set()

    def make(self, group: Sequence[Step], stop: Stop) -> None:
        """Run what of a group is missing and has what it needs."""
        self.finished |= {step.name for step in group if finished(self.healing, step)}
        due = [step for step in group if step.name not in self.finished and self._ready(step)]
        by_name = {step.name: step for step in due}
        count = 0

        def note(ended: Ended) -> None:
            nonlocal count
            count += 1
            self._record(by_name[ended.job.name], ended)
            logger.info("[%d/%d] %s: %s after %s", count, len(due), ended.job.name, ended.status, duration(ended.seconds))
            if ended.status == FINISHED:
                self.finished.add(ended.job.name)
            else:
                lines = Lines("\n".join(tail(ended.job.log, self.healing.log_tail_lines)))
                logger.error("%s ends with\n%s", ended.job.log, lines)

        run_jobs([self._job(step) for step in due], self.environment, self.limits, stop, note)

    def _ready(self, step: Step) -> bool:
        absent = [name for name in step.needs if name not in self.finished]
        if absent:
            logger.warning("%s waits for %s", step.name, ", ".join(absent[:3]))
        return not absent

    def _job(self, step: Step) -> Job:
        log = self.healing.folder / "logs" / f"{step.name}.log"
        return Job(
            step.name, (*self.python, f"unify_posttrain.{step.module}", *step.overrides), log, lambda: begin(self.healing, step)
        )

    def _record(self, step: Step, ended: Ended) -> None:
        how = ended.status, ended.exit_code, ended.started, ended.seconds
        write(self.healing, Done(step.name, step.digest, redacted_overrides(step.overrides), *how, self.source))


def show(healing: Healing) -> list[str]:
    """What is there, in lines for the terminal."""
    chosen: Chosen = chosen_starts(healing)
    lines = [
        f"seed {seed}: {', '.join(f'{start} is step {step}' for start, step in starts.items())}" for seed, starts in chosen.items()
    ]
    return [*lines, f"results: {healing.folder / 'heals.md'}"]
