"""What a run is told by signals: the scheduler's "save and leave", and the clock's "this step hangs".

SIGTERM and SIGUSR1 ask a run to end: it finishes the step that it is in, writes a checkpoint, and leaves with `EXIT_REQUEUE`, upon
which a scheduler starts the same command again. A second signal ends it at once, as if there were no handler.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: it failed for now, try again
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STAGE_PREFIX = "_fit_"  # the trainer's methods that carry out one stage of a step


class PreemptedError(Exception):
    """The run saved its state and leaves because it was asked to."""


class StepTimeoutError(Exception):
    """A step took longer than `trainer.step_timeout`."""


class StopRequest:
    """Set by the first SIGTERM or SIGUSR1; the trainer asks for it at the end of every step."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def leave(self, step: int, folder: Path) -> NoReturn:
        """End the run as it was asked to.

        Raises:
            PreemptedError: always.
        """
        raise PreemptedError(f"{self.signal.name}: step {step} is saved in {folder}; the same command goes on from there")

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Handle the signals inside of the block. Outside of the main thread, where Python allows no handlers, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        self._before = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        logger.warning("%s: this step will be finished and saved, then the run leaves; a second signal ends it", self.signal.name)


@contextmanager
def time_limit(seconds: float | None, what: str) -> Iterator[None]:
    """Raise StepTimeoutError in the block once it has taken `seconds` (None: never). Main thread only; elsewhere there is no limit.

    A rollout server or a reward process that hangs is otherwise waited for until the job's time is up.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_number: int, frame: FrameType | None) -> None:
        raise StepTimeoutError(f"{what} has taken more than trainer.step_timeout={seconds:g} seconds{_stage(frame)}")

    before = signal.signal(signal.SIGALRM, expired)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _stage(frame: FrameType | None) -> str:
    """Which stage of the step a stack is in."""
    while frame is not None:
        name = frame.f_code.co_name
        if name.startswith(STAGE_PREFIX) and name != "_fit_step":
            return f"; it is in the stage `{name.removeprefix(STAGE_PREFIX)}`"
        frame = frame.f_back
    return ""
