"""What people read, on a terminal and in logs: without acting characters (`text`) and without secrets (`redaction`).

A command runs inside of `guarded_output`; what it writes besides the log goes through `write`, what it puts into a table of rich
through `cell`. Log records are cleaned where they are made, whoever makes them and whichever handler writes them. Processes of Ray
call `guard_logs` when they start.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Number
from types import TracebackType
from typing import TYPE_CHECKING, Any

from unify_posttrain.redaction import redact_text, remember
from unify_posttrain.text import lines_of, one_line, with_margin

if TYPE_CHECKING:
    from rich.text import Text

PACKAGE = __name__.partition(".")[0]


class Lines(str):
    """An argument of a log message that has lines and may keep them: the end of another log, say."""


class SafeRecord(logging.LogRecord):
    """A log record whose message and traceback are fit for people.

    What the package's own messages quote stays in their line, because it may come from data; others' messages keep their lines,
    with a margin. Tracebacks are written here, since a formatter takes a text that is there already.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.name.partition(".")[0] == PACKAGE and isinstance(self.args, tuple):
            self.args = tuple(each if isinstance(each, Number | Lines) else _Quoted(each) for each in self.args)
        if self.exc_info and self.exc_info[0] is not None:
            self.exc_text = of_exception(*self.exc_info)

    def getMessage(self) -> str:
        return with_margin(redact_text(super().getMessage()))


class _Quoted:
    """An argument that is made a line when the message is, if it ever is. Pickled as its text (queues of log records)."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __str__(self) -> str:
        return one_line(self.value)

    def __repr__(self) -> str:
        return one_line(repr(self.value))

    def __int__(self) -> int:  # `%d` of a tensor
        return int(self.value)  # type: ignore[call-overload]

    def __float__(self) -> float:
        return float(self.value)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)


def of_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> str:
    """A traceback as a log shows it; a message of several lines cannot begin one of the log's."""
    return with_margin(redact_text("".join(traceback.format_exception(kind, error, trace)).rstrip("\n")))


def guard_logs() -> None:
    """From now on every log record of this process is a `SafeRecord`; secrets of its environment are remembered."""
    remember(dict(os.environ))
    logging.setLogRecordFactory(SafeRecord)


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of `sys.excepthook`: the traceback of what ends the process."""
    sys.stderr.write(f"{of_exception(kind, error, trace)}\n")


@contextmanager
def guarded_output() -> Iterator[None]:
    """Inside of it logs are guarded; the line that ends the command (`sys.exit("error: …")`) and its traceback are, too."""
    before = logging.getLogRecordFactory()
    guard_logs()
    try:
        yield
    except SystemExit as stop:
        raise SystemExit(clean_line(stop.code) if isinstance(stop.code, str) else stop.code) from None
    except Exception:
        sys.excepthook = _show  # Python calls it after the last `finally`
        raise
    finally:
        logging.setLogRecordFactory(before)


def clean_line(text: object) -> str:
    """One line without secrets."""
    return one_line(redact_text(str(text)))


def write(lines: str | Iterable[object]) -> None:
    """Lines to standard output; each stays one. A text is one line."""
    sys.stdout.write(lines_of(clean_line(line) for line in ([lines] if isinstance(lines, str) else lines)))


def cell(text: object, style: str = "") -> Text:
    """A cell, title or line for rich, in which nothing is markup."""
    from rich.text import Text

    return Text(clean_line(text), style=style)


def described(text: object) -> str:
    """A description of rich's progress bars, which read markup whatever they are given."""
    from rich.markup import escape

    return escape(clean_line(text))
