"""The page itself: what can be read without a script (verdict, numbers, configuration), and the data for what cannot.

Every text that comes from a run passes through `escape`, or through `shown` and `json_for_html` into a block that no browser
executes; the script puts it on the page as text nodes only. A content security policy forbids everything but the page's own
script and style, and pictures that are part of it.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files
from string import Template
from typing import Any

from unify_posttrain.reporting.alerts import Alert
from unify_posttrain.reporting.charts import Chart
from unify_posttrain.reporting.configuration import Row
from unify_posttrain.reporting.panels import EVALUATIONS, SECTIONS
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.tables import configuration_table, difference_table, environment_table, run_table, validation_table
from unify_posttrain.reporting.text import escape, shown
from unify_posttrain.reporting.verdict import STATUSES, Validation, Verdict

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
SCRIPTS = ("draw.js", "charts.js", "browser.js", "page.js")


@dataclass(frozen=True)
class Summary:
    """A run with what was concluded about it; `advice` says how to get a dump of rollouts."""

    run: Run
    verdict: Verdict
    validations: list[Validation]
    alerts: list[Alert]
    advice: str


@dataclass(frozen=True)
class Page:
    """Everything that is shown. `data` is for the script: runs, zones, rollouts, validation, evaluations. `benchmarks` is HTML."""

    summaries: Sequence[Summary]
    charts: Sequence[Chart]
    settings: Sequence[Row]
    data: dict[str, Any]
    benchmarks: str = ""


def render(page: Page) -> str:
    """The HTML of a page."""
    labels = [summary.run.label for summary in page.summaries]
    data = {**page.data, "charts": page.charts}
    return document(" · ".join(labels), "Verdict", _header(page), _sections(page), data, page_script())


def document(title: str, top: str, header: str, sections: Sequence[tuple[str, str, str]], data: Any, script: str) -> str:
    """A page that loads nothing, of whatever it is about.

    Args:
        title: a text.
        top: name of the link to the header.
        header: HTML.
        sections: anchor (letters), heading (a text), content (HTML).
        data: for the script, in the element `data`; its texts are made visible here.
        script: the only one that may run.
    """
    links = [("top", top), *(section[:2] for section in sections)]
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return Template(_template("page.html")).substitute(
        title=escape(title),
        policy=f"{POLICY}; script-src 'sha256-{digest}'",
        style=_template("page.css"),
        navigation="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading in links),
        header=header,
        sections="".join(_section(*section) for section in sections),
        data=json_for_html(shown(data)),
        script=script,
    )


def page_script() -> str:
    """The script of charts and browsers."""
    return "\n".join(map(_template, SCRIPTS))


def elements_script() -> str:
    """The script that makes elements (`make`), for scripts of other pages."""
    return _template("draw.js")


def json_for_html(value: Any) -> str:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment.

    Raises:
        ValueError: a number that is not finite, which JSON has no word for.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _sections(page: Page) -> list[tuple[str, str, str]]:
    """(anchor, heading, HTML) in the order of the page."""
    drawn = {name: [chart for chart in page.charts if chart["section"] == name] for name in SECTIONS}
    beside = {EVALUATIONS: page.benchmarks}
    charts = [
        (name, heading, f"{figures(drawn[name])}{beside.get(name, '')}")
        for name, heading in SECTIONS.items()
        if drawn[name] or beside.get(name)
    ]
    several = len(page.summaries) > 1
    runs = [summary.run for summary in page.summaries]
    return [
        *charts,
        ("rollouts", "Rollouts and demonstrations", _rollouts(page)),
        ("samples", "Validation answers over time", _samples(page)),
        ("configuration", "Configuration", configuration_table(page.settings, [run.label for run in runs], several)),
        ("environment", "Environment", environment_table(runs)),
    ]


def _section(name: str, heading: str, content: str) -> str:
    return f'<section id="{name}"><h2>{escape(heading)}</h2>{content}</section>'


def _header(page: Page) -> str:
    if len(page.summaries) == 1:
        return _headline(page.summaries[0])
    verdicts = "".join(
        f'<li><button type="button" class="swatch" data-run="{number}" aria-pressed="true" title="show or hide this run">'
        f'<span class="key colour-run{number % 8}"></span>{escape(summary.run.label)}</button> {_badge(summary.verdict)} '
        f"{escape(summary.verdict.sentence)}{_alerts(summary.alerts)}</li>"
        for number, summary in enumerate(page.summaries)
    )
    table = run_table([(summary.run, summary.validations) for summary in page.summaries])
    differences = difference_table(page.settings, [summary.run.label for summary in page.summaries])
    return f'<h1>{len(page.summaries)} runs</h1><ul class="verdicts">{verdicts}</ul>{table}{differences}'


def _headline(summary: Summary) -> str:
    run = summary.run
    planned = "" if run.planned is None else f" of {run.planned}"
    facts = {"algorithm": run.algorithm, "model": run.model, "task": run.task, "steps": f"{run.done}{planned}"}
    if run.updated is not None:
        facts["last written"] = f"{run.updated:%Y-%m-%d %H:%M} UTC"
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<h1>{escape(run.label)}</h1><dl class="facts">{listed}</dl>'
        f'<p class="verdict">{_badge(summary.verdict)} {escape(summary.verdict.sentence)}</p>'
        f"{validation_table(summary.validations)}{_alerts(summary.alerts)}"
    )


def _badge(verdict: Verdict) -> str:
    return f'<strong class="badge {verdict.status}">{escape(STATUSES[verdict.status])}</strong>'


def _alerts(alerts: Sequence[Alert]) -> str:
    items = "".join(f'<li class="{alert.level}"><b>{alert.level}</b> {escape(alert.text)}</li>' for alert in alerts)
    return f'<ul class="alerts">{items}</ul>' if items else ""


def figures(charts: Sequence[Chart]) -> str:
    """The places of charts, which the script fills."""
    return f'<div class="charts">{"".join(map(_figure, charts))}</div>'


def _figure(chart: Chart) -> str:
    return (
        f'<figure class="chart {chart["kind"]}" id="{chart["id"]}"><figcaption><h3>{escape(chart["title"])}</h3>'
        f'<p>{escape(chart["caption"])}</p></figcaption><div class="plot"></div></figure>'
    )


def _rollouts(page: Page) -> str:
    dumped = [bool(steps) for steps in page.data["rollouts"]]
    advice = "".join(
        f'<p class="advice">{escape(summary.run.label)} has no dump of rollouts. {escape(summary.advice)}</p>'
        for summary, has in zip(page.summaries, dumped, strict=True)
        if not has
    )
    introduction = (
        "<p>What single prompts were trained on: rollouts beside the demonstration, coloured by what a token is or by how hard it "
        "was pushed. The page holds a sample of steps and prompts in which every zone of the gate has its turn.</p>"
    )
    return (introduction + '<div class="browser" data-browser="rollouts"></div>' if any(dumped) else "") + advice


def _samples(page: Page) -> str:
    if not any(samples["prompts"] for samples in page.data["validation"]):
        return '<p class="advice">No validation samples: set trainer.test_freq, and trainer.validation_data_dir to RUN/samples.</p>'
    introduction = (
        "<p>The same questions at several validations. First those whose outcome changed, then some that stayed wrong or right.</p>"
    )
    return introduction + '<div class="browser" data-browser="validation"></div>'
