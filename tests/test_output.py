"""What people read goes through one place: logs, the line that ends a command, tables; hostile text and secrets do no harm."""

from __future__ import annotations

import ast
import logging
import pickle
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import unify_posttrain
from tests.hostile import HOSTILE, acting, assert_harmless
from unify_posttrain import output, redaction
from unify_posttrain.output import Lines, cell, described, guard_logs, guarded_output, write

PACKAGE = Path(unify_posttrain.__file__).parent
SECRET = "hf_" + "AbCdEfGh1234567890"


@pytest.fixture
def log() -> Iterator[StringIO]:
    """What a handler of a guarded process writes."""
    before, stream = logging.getLogRecordFactory(), StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    guard_logs()
    logging.getLogger().addHandler(handler)
    try:
        yield stream
    finally:
        logging.getLogger().removeHandler(handler)
        logging.setLogRecordFactory(before)
        redaction.forget()


# Logs


@pytest.mark.parametrize("argument", [HOSTILE, ValueError(HOSTILE), Path(HOSTILE.replace("\x00", "")), [HOSTILE]])
def test_what_a_message_quotes_stays_in_its_line(log: StringIO, argument: object) -> None:
    logging.getLogger("unify_posttrain.rewards.math").warning("grading an answer of %s failed", argument)
    assert acting(log.getvalue()) == set() and log.getvalue().count("\n") == 1


def test_others_keep_their_lines_behind_a_margin(log: StringIO) -> None:
    logging.getLogger("verl.trainer").warning("first\nERROR verl: forged\x1b[2J %s", "a\nERROR b")
    lines = log.getvalue().splitlines()
    assert lines == ["WARNING verl.trainer: first", "    ERROR verl: forged\\x1b[2J a", "    ERROR b"]


def test_ends_of_other_logs_keep_their_lines(log: StringIO) -> None:
    logging.getLogger("unify_posttrain.study").error("%s ends with\n%s", "a.log", Lines("one\ntwo"))
    assert log.getvalue() == "ERROR unify_posttrain.study: a.log ends with\n    one\n    two\n"


def test_numbers_are_formatted_as_numbers(log: StringIO) -> None:
    logging.getLogger("unify_posttrain.x").warning("%d %.2f %d %s %r", 3, 0.5, np.int64(4), True, "a")
    assert "3 0.50 4 True 'a'" in log.getvalue()


def test_tracebacks_hold_no_secret_and_forge_no_line(log: StringIO) -> None:
    try:
        raise ValueError(f"401 for https://me:hunter2@host\nERROR forged\x1b[2J {SECRET}")
    except ValueError:
        logging.getLogger("unify_posttrain.train").exception("the run failed")
    text = log.getvalue()
    assert "Traceback (most recent call last)" in text and "401 for https://<redacted>@host" in text
    assert "hunter2" not in text and SECRET not in text and acting(text) == set() and "\nERROR forged" not in text


def test_secrets_of_the_environment_are_known(log: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_SERVICE_PASSWORD", "nobody-guesses-this-1")
    guard_logs()
    logging.getLogger("unify_posttrain.x").warning("the server says: %s is wrong", "nobody-guesses-this-1")
    assert "nobody-guesses-this-1" not in log.getvalue() and "<redacted>" in log.getvalue()


def test_a_record_can_be_sent_to_another_process(log: StringIO) -> None:
    record = logging.getLogRecordFactory()("unify_posttrain.x", logging.INFO, "f.py", 1, "a %s", (HOSTILE,), None)
    assert acting(pickle.loads(pickle.dumps(record)).getMessage()) == set()


# Commands


def test_the_line_that_ends_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop, guarded_output():
        sys.exit(f"error: {HOSTILE} HF_TOKEN=abc")
    assert_harmless(str(stop.value.code), allowed="")
    assert "HF_TOKEN=<redacted>" in str(stop.value.code)
    with pytest.raises(SystemExit) as stop, guarded_output():
        sys.exit(75)
    assert stop.value.code == 75


def test_a_traceback_that_ends_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    with pytest.raises(RuntimeError), guarded_output():
        raise RuntimeError(f"{HOSTILE} {SECRET}")
    error = RuntimeError(f"{HOSTILE} {SECRET}")
    sys.excepthook(RuntimeError, error, None)
    shown = capsys.readouterr().err
    assert_harmless(shown)
    assert SECRET not in shown


def test_logs_are_as_before_when_a_command_has_ended() -> None:
    before = logging.getLogRecordFactory()
    with guarded_output():
        assert logging.getLogRecordFactory() is output.SafeRecord
    assert logging.getLogRecordFactory() is before


def test_what_is_written_has_as_many_lines_as_it_was_given(capsys: pytest.CaptureFixture[str]) -> None:
    write(HOSTILE)
    write(["a", f"b\nc {SECRET}"])
    written = capsys.readouterr().out
    assert_harmless(written)
    assert written.count("\n") == 3 and SECRET not in written


# Rich


def test_tables_and_bars_read_no_markup() -> None:
    console = Console(file=StringIO(), width=400)
    table = Table("plain", title=cell(HOSTILE))
    table.add_column(cell(HOSTILE))
    table.add_row(cell(HOSTILE, style="bold"), cell(HOSTILE))
    console.print(table)
    console.print(cell(HOSTILE), soft_wrap=True)
    with Progress(console=console) as bar:
        bar.add_task(described(HOSTILE), total=1)
    assert_harmless(console.file.getvalue())  # type: ignore[attr-defined]


# All sites: what reaches a console of rich, or standard output, has passed through these.
CLEANED = {"cell", "described", "clean_line", "Text", "with_margin", "Text.assemble", "map", "show", "_gate_table"}
PRINTING = ("print", "add_row", "add_column", "add_task")


def raw_texts(tree: ast.Module) -> list[str]:
    """f-strings with a text in them that are given to rich or to standard output as they are."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        printing = isinstance(node.func, ast.Attribute) and (node.func.attr in PRINTING or name == "sys.stdout.write")
        if not printing and name != "Table":
            continue
        given = [*node.args, *(each.value for each in node.keywords if name == "Table" and each.arg == "title")]
        found += [f"{node.lineno}: {ast.unparse(each)}" for each in given if _raw(each)]
    return found


def _raw(node: ast.expr) -> bool:
    """Whether an expression holds a text that was put together and not cleaned. Formatted numbers are none."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) in CLEANED:
        return False
    if isinstance(node, ast.JoinedStr):
        return any(
            isinstance(each, ast.FormattedValue) and each.format_spec is None and ast.unparse(each) != "{__doc__}"
            for each in node.values
        )
    if isinstance(node, ast.Starred | ast.GeneratorExp):
        return _raw(node.value if isinstance(node, ast.Starred) else node.elt)
    if isinstance(node, ast.BinOp):
        return _raw(node.left) or _raw(node.right)
    return False


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_text_reaches_the_terminal_uncleaned(path: Path) -> None:
    assert raw_texts(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("source", "raw"),
    [
        ("console.print(f'results: {folder}')", True),
        ("table.add_row(*(f'{name}' for name in x))", True),
        ("sys.stdout.write(f'{output}\\n')", True),
        ("x = Table(title=f'{task}, accuracy')", True),
        ("bar.add_task(f'{label} on {name}', total=1)", True),
        ("console.print(cell(f'results: {folder}'))", False),
        ("table.add_row(f'{share:.0%}')", False),
        ("logger.info(f'{x}')", False),
    ],
)
def test_the_search_finds_what_it_is_for(source: str, raw: bool) -> None:
    assert bool(raw_texts(ast.parse(source))) == raw
