"""The tables of a summary, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from unify_posttrain.auditing.judging import MATH_VERIFY
from unify_posttrain.output import cell

NONE = "-"


def show(summary: Mapping[str, Any], console: Console) -> None:
    """Print all that there is."""
    console.print(cell(f"{summary['rows']} responses; graders differ on {summary['differing']}"))
    console.print(_judges(summary))
    console.print(_against(summary))
    if summary["expected"]:
        console.print(_expected(summary["expected"]))
        if summary["expected"]["families"]:
            console.print(_families(summary["expected"]))
    console.print(_slowest(summary))


def share(value: float | None) -> str:
    """
    >>> share(0.5), share(None)
    ('50.0%', '-')
    """
    return NONE if value is None else f"{value:.1%}"


def milliseconds(value: float | None) -> str:
    """
    >>> milliseconds(0.0123), milliseconds(None)
    ('12.3', '-')
    """
    return NONE if value is None else f"{1000 * value:.1f}"


def faults(counts: Mapping[str, int]) -> str:
    """
    >>> faults({"timeout": 2, "crash": 1}), faults({})
    ('3 (2 timeout, 1 crash)', '0')
    """
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return f"{sum(counts.values())} ({kinds})" if counts else "0"


def judge_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line per judge: JUDGE_COLUMNS."""
    rows = []
    for name, counts in summary["judges"].items():
        said = [str(counts["graded"]), str(counts["right"]), share(counts["accuracy"]), str(counts["no_answer"])]
        said += [str(counts["masked"]), faults(counts["faults"])]
        rows.append([name, *said, *(milliseconds(counts[f"seconds_{which}"]) for which in ("median", "p99", "most"))])
    return rows


JUDGE_COLUMNS = ("version", "graded", "right", "accuracy", "no answer", "masked", "faults", "median ms", "p99 ms", "most ms")
AGAINST_COLUMNS = ("version", "both right", "only the version", "only math-verify", "both wrong", "one masked")
EXPECTED_COLUMNS = ("version", "rows", "as expected", "share", "false accepts", "false rejects")


def against_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """A line per version: AGAINST_COLUMNS."""
    keys = ("both_right", "only_judge", "only_math_verify", "both_wrong", "one_masked")
    return [[name, *(str(crossed[key]) for key in keys)] for name, crossed in summary["against_math_verify"].items()]


def expected_row(name: str, counts: Mapping[str, int]) -> list[str]:
    """EXPECTED_COLUMNS of one judge or family."""
    agreed = share(counts["agree"] / counts["rows"]) if counts["rows"] else NONE
    return [name, str(counts["rows"]), str(counts["agree"]), agreed, str(counts["false_accepts"]), str(counts["false_rejects"])]


def _table(title: str, columns: tuple[str, ...], rows: list[list[str]], left: tuple[int, ...] = (0,)) -> Table:
    table = Table(title=cell(title), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(cell(column), justify="left" if number in left else "right")
    for row in rows:
        table.add_row(*map(cell, row))
    return table


def _judges(summary: Mapping[str, Any]) -> Table:
    return _table("Verdicts", JUDGE_COLUMNS, judge_rows(summary))


def _against(summary: Mapping[str, Any]) -> Table:
    return _table("Against math-verify alone", AGAINST_COLUMNS, against_rows(summary))


def _expected(expected: Mapping[str, Any]) -> Table:
    return _table(
        "Against what is expected", EXPECTED_COLUMNS, [expected_row(name, counts) for name, counts in expected["judges"].items()]
    )


def _families(expected: Mapping[str, Any]) -> Table | Text:
    """Only families in which something is wrong: the others are as they should be."""
    main, rows = expected["judge"], []
    for family, counts in expected["families"].items():
        theirs = counts[MATH_VERIFY]
        if counts[main]["agree"] < counts[main]["rows"]:
            rows.append([*expected_row(family, counts[main]), str(theirs["false_accepts"]), str(theirs["false_rejects"])])
    fine = len(expected["families"]) - len(rows)
    if not rows:
        return cell(f"Families, version {main}: all {fine} wholly as expected")
    columns = ("family", *EXPECTED_COLUMNS[1:], "math-verify: false accepts", "false rejects")
    return _table(f"Families, version {main}; {fine} further ones wholly as expected", columns, rows)


def _slowest(summary: Mapping[str, Any]) -> Table:
    rows = [
        [str(each["row"]), each["judge"], milliseconds(each["seconds"]), each["state"], each["answer"][:60]]
        for each in summary["slowest"]
    ]
    return _table("Slowest verdicts", ("row", "version", "ms", "verdict", "answer"), rows, left=(1, 3, 4))
