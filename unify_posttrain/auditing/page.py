"""One HTML page to look through: responses beside their verdicts, chosen by where graders differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from unify_posttrain.auditing.judging import Judged
from unify_posttrain.auditing.printing import (
    AGAINST_COLUMNS,
    EXPECTED_COLUMNS,
    JUDGE_COLUMNS,
    against_rows,
    expected_row,
    judge_rows,
)
from unify_posttrain.auditing.settings import Settings
from unify_posttrain.auditing.summary import main_judge
from unify_posttrain.reporting.page import document, elements_script
from unify_posttrain.reporting.tables import table
from unify_posttrain.reporting.text import escape


def build_page(name: str, judged: Sequence[Judged], summary: Mapping[str, Any], settings: Settings) -> str:
    """The HTML; texts of responses and ground truths are escaped, and nothing is loaded.

    Args:
        name: of the file that was graded.
    """
    # A stable sort: what is doubtful comes first, each kind in the order of the file.
    chosen = sorted(judged, key=lambda each: _rank(each, main_judge(judged, settings)))[: settings.page_rows]
    expected = summary["expected"]
    parts = [
        ("verdicts", "Verdicts", table(JUDGE_COLUMNS, judge_rows(summary), "numbers")),
        ("against", "Against math-verify alone", table(AGAINST_COLUMNS, against_rows(summary), "numbers")),
    ]
    if expected:
        rows = [expected_row(judge, counts) for judge, counts in expected["judges"].items()]
        parts.append(("expected", "Against what is expected", table(EXPECTED_COLUMNS, rows, "numbers")))
        if expected["families"]:
            columns = ("family", *EXPECTED_COLUMNS[1:])
            rows = [expected_row(family, counts[expected["judge"]]) for family, counts in expected["families"].items()]
            parts.append(("families", f"Families, version {expected['judge']}", table(columns, rows, "numbers")))
    hidden = len(judged) - len(chosen)
    note = f'<p class="advice">{hidden} rows are not on the page: page_rows={settings.page_rows} of conf/grade.yaml.</p>'
    parts.append(("responses", "Responses", '<div class="browser" id="verdict-browser"></div>' + (note if hidden else "")))
    header = f"<h1>{escape(name)}</h1><p>{summary['rows']} responses; graders differ on {summary['differing']}.</p>"
    data = {
        "judges": list(summary["judges"]),
        "main": main_judge(judged, settings),
        "rows": [_row(each, settings.characters) for each in chosen],
    }
    script = elements_script() + files(__package__).joinpath("templates", "verdicts.js").read_text(encoding="utf-8")
    return document(f"Grades of {name}", "Overview", header, parts, data, script)


def _rank(each: Judged, main: str) -> int:
    verdict = each.verdicts.get(main)
    if each.record.expected is not None and verdict is not None and bool(verdict.right) != each.record.expected:
        return 0 if verdict.right else 1
    return 2 if each.differs else 3


def _row(each: Judged, characters: int) -> dict[str, Any]:
    record = each.record
    return {
        "place": record.place,
        "response": _end_of(record.response, characters),
        "gold": _end_of(str(record.ground_truth), characters),
        "expected": record.expected,
        "family": record.family,
        "version": record.version,
        "verdicts": {
            name: [verdict.state, verdict.answer[:characters], verdict.seconds] for name, verdict in each.verdicts.items()
        },
    }


def _end_of(text: str, characters: int) -> str:
    """The end, where answers stand."""
    return text if len(text) <= characters else f"… {len(text) - characters} characters …\n{text[-characters:]}"
