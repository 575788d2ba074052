"""What a run is told by signals: the scheduler's "save and leave", Ctrl-C, and the clock's "this step hangs".

SIGTERM, SIGUSR1, SIGINT (Ctrl-C) and SIGHUP (the terminal is gone) ask a run to end: it finishes the step that it is in, writes a
checkpoint, and leaves. After the first two the exit code is `EXIT_REQUEUE`, upon which a scheduler starts the same command again;
after the others it is a shell's, 128 and the signal's number, which asks for nothing. A second signal ends the run at once, with a
line that says what is left. While no step is being trained, the first one does.
"""

from __future__ import annotations

import logging
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

EXIT_REQUEUE = 75  # EX_TEMPFAIL of sysexits.h: it failed for now, try again
EXIT_INTERRUPTED = 128 + signal.SIGINT  # as a shell says it
REQUEUE_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
STOP_SIGNALS = (*REQUEUE_SIGNALS, signal.SIGINT, signal.SIGHUP)
# Signals this close to the first are the same request: `timeout` sends one to its child and another to the child's whole group.
SAME_REQUEST_SECONDS = 1.0
STDOUT, STDERR = 1, 2  # numbers: `sys.stderr` may be a live display's, which wants more of the process than a handler can give
SHOW_CURSOR = "\x1b[?25h"
STAGE_PREFIX = "_fit_"  # the trainer's methods that carry out one stage of a step


class PreemptedError(BaseException):
    """The run leaves because it was asked to. Like KeyboardInterrupt it is no Exception: code that survives faults lets it pass."""

    def __init__(self, message: str, number: signal.Signals) -> None:
        super().__init__(message)
        self.exit_code = EXIT_REQUEUE if number in REQUEUE_SIGNALS else 128 + number


class StepTimeoutError(Exception):
    """A step took longer than `trainer.step_timeout`."""


class StopRequest:
    """Set by the first signal that asks the run to end; the trainer asks for it at the end of every step.

    Args:
        left: says in a sentence what is saved, and how to go on. Called within a handler, so it should take no time.
        way_on: the latter alone.
    """

    def __init__(
        self, left: Callable[[], str] = lambda: "", way_on: Callable[[], str] = lambda: "the same command goes on from there"
    ) -> None:
        self.signal: signal.Signals | None = None
        self._left, self._way_on = left, way_on
        self._asked = 0.0  # when, by the monotonic clock
        self._before: dict[signal.Signals, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def leave(self, step: int, folder: Path) -> NoReturn:
        """End the run as it was asked to.

        Raises:
            PreemptedError: always.
        """
        raise PreemptedError(f"{self.signal.name}: step {step} is saved in {folder}; {self._way_on()}", self.signal)

    @contextmanager
    def listening(self) -> Iterator[StopRequest]:
        """Note the first signal inside of the block. Outside of the main thread, where Python allows no handlers, do nothing."""
        with self._handling(self._promise):
            yield self

    @contextmanager
    def leaving(self) -> Iterator[StopRequest]:
        """Leave the block at the first signal: there is nothing to finish.

        Raises:
            PreemptedError: in the main thread, wherever it is.
        """
        with self._handling(self._raise), _as_it_was_raised(PreemptedError):
            yield self

    @contextmanager
    def _handling(self, first: Callable[[], None]) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handler(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGHUP:
                _forget_terminal()
            now = time.monotonic()
            if self.signal is None:
                self.signal, self._asked = signal.Signals(number), now
                first()
            elif now - self._asked > SAME_REQUEST_SECONDS:
                self._end_at_once(signal.Signals(number))

        # A signal that whoever started the process has it ignore (SIGINT, in the background of a script) stays ignored.
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, handler) for number in heeded}
        try:
            yield
        finally:
            for number, before in self._before.items():
                signal.signal(number, before)

    def _promise(self) -> None:
        logger.warning("%s: this step will be finished and saved, then the run leaves; a second signal ends it", self.signal.name)

    def _raise(self) -> NoReturn:
        raise PreemptedError(f"{self.signal.name} while no step was being trained. {self._left()}".rstrip(), self.signal)

    def _end_at_once(self, number: signal.Signals) -> None:
        """As if there were no handler, but for the line. Ray's processes end with this one."""
        cursor = SHOW_CURSOR if os.isatty(STDERR) else ""  # a live display hides it
        os.write(STDERR, f"{cursor}\n{number.name} again: ended at once. {self._left()}\n".encode())
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)


def _forget_terminal() -> None:
    """Write to nowhere instead of to a terminal that is gone, where every line would be an error; files are left as they are."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (STDOUT, STDERR):
        if stat.S_ISCHR(os.fstat(number).st_mode):  # `isatty` no longer takes it for one
            os.dup2(nowhere, number)
    os.close(nowhere)


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
        with _as_it_was_raised(StepTimeoutError):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _as_it_was_raised(kind: type[BaseException]) -> Iterator[None]:
    """A handler raises wherever the main thread is. Within a constructor written in C that comes out as a SystemError caused by it,
    and what is cleaned up on the way may fail in turn: raise what the handler raised in place of such an error."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, kind):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        raise cause from None


def _stage(frame: FrameType | None) -> str:
    """Which stage of the step a stack is in."""
    while frame is not None:
        name = frame.f_code.co_name
        if name.startswith(STAGE_PREFIX) and name != "_fit_step":
            return f"; it is in the stage `{name.removeprefix(STAGE_PREFIX)}`"
        frame = frame.f_back
    return ""
