"""Runs all checks side by side, with a limit on the time, so that a hanging driver or file system costs a line and not the job."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from unify_posttrain.doctoring.findings import Finding, Status, yellow
from unify_posttrain.doctoring.looks import CHECKS, Check
from unify_posttrain.doctoring.subject import Subject

SECONDS = 14.0  # for all checks; composing and importing come before them


def examine(subject: Subject, seconds: float = SECONDS, checks: Sequence[Check] = CHECKS) -> list[Finding]:
    """Run every check; those that do not end in time or that fail themselves become a yellow line."""
    results: dict[Check, list[Finding]] = {}
    # Daemons: a thread that waits for a dead file system cannot be ended, but must not keep the command alive.
    threads = [threading.Thread(target=_run, args=(check, subject, results), daemon=True) for check in checks]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = f"no answer within {seconds:g} s"
    remedy = "a driver, a file system or the network hangs, or the machine is very busy; try it by hand"
    return [finding for check in checks for finding in results.get(check, [yellow(check.__name__.lstrip("_"), late, remedy)])]


def _run(check: Check, subject: Subject, results: dict[Check, list[Finding]]) -> None:
    try:
        results[check] = list(check(subject))
    except Exception as error:  # a doctor that fails is no reason to keep a job from running
        message = str(error).partition("\n")[0][:160]
        found = f"the check failed: {type(error).__name__}: {message}"
        results[check] = [Finding(check.__name__.lstrip("_"), Status.YELLOW, found, "look at it by hand, and report it")]
