"""From runs to charts: plain data that `charts.js` draws. A chart is a dict with

id, section, title, caption, kind (lines, areas, heat), unit, and for lines and areas
    series: [{label, colour, run, x: [step], y: [value]}]   colour: "run0", "series0" or "zone-rl"; areas share one x
for heat
    x: [first step of a column], rows: highest count, cells: [[share of prompts by number solved] per column]
and marks: [{x, label}], steps at which a phase begins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from unify_posttrain.reporting.panels import GENERATED, PANELS, SECTIONS, STAGES, ZONES, Panel
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.settings import Limits
from unify_posttrain.reporting.verdict import validations

Chart = dict[str, Any]
LEAST_TIME = 0.005  # share of all time below which a stage is not drawn


def charts(runs: Sequence[Run], limits: Limits, others: Sequence[Chart] = ()) -> list[Chart]:
    """Every chart for which a run has data, and `others`, in the order of the page."""
    drawn = [
        *others,
        *_validation(runs),
        *(chart for run_charts in (_zones(runs, limits), _solved(runs, limits)) for chart in run_charts),
        *(chart for panel in PANELS for chart in _panel(panel, runs, limits)),
        *_stages(runs, limits),
    ]
    marks = [mark for run in runs for mark in phases(run)] if len(runs) == 1 else []
    order = list(SECTIONS)
    drawn.sort(key=lambda chart: order.index(chart["section"]))
    return [{**chart, "id": f"chart{number}", "marks": marks} for number, chart in enumerate(drawn)]


def phases(run: Run) -> list[dict[str, Any]]:
    """Steps at which a phase after the first begins."""
    steps, values = run.series("fusion/phase")
    begins = [step for step, before, after in zip(steps[1:], values, values[1:], strict=False) if after != before]
    return [{"x": step, "label": f"phase {int(run.metrics[step]['fusion/phase']) + 1}"} for step in begins]


def _validation(runs: Sequence[Run]) -> list[Chart]:
    found = [(index, curve) for index, run in enumerate(runs) for curve in validations(run)]
    sources = list(dict.fromkeys(curve.source for _, curve in found))
    caption = "Mean over the problems of each source, as the run's own validation measures it."
    lines = {
        source: [
            make_line(runs[index].label, f"run{index}", index, curve.steps, curve.values)
            for index, curve in found
            if curve.source == source
        ]
        for source in sources
    }
    units = {source: "share" if all(c.is_share for _, c in found if c.source == source) else "number" for source in sources}
    names = {curve.source: curve.name for _, curve in found}
    if len(runs) > 1 or len(set(units.values())) > 1:
        titles = {source: f"Accuracy: {source}" if units[source] == "share" else f"Reward: {source}" for source in sources}
        return [make_chart("glance", titles[source], caption, units[source], lines[source]) for source in sources]
    series = [{**lines[source][0], "label": names[source], "colour": f"series{i}"} for i, source in enumerate(sources)]
    unit = next(iter(units.values()), "share")
    title = "Accuracy by source" if unit == "share" else "Reward by source"
    return [make_chart("glance", title, caption, unit, series)] if series else []


def _panel(panel: Panel, runs: Sequence[Run], limits: Limits) -> list[Chart]:
    lines: dict[str, list[dict[str, Any]]] = {}
    for position, (label, *metrics) in enumerate(panel.lines):
        for index, run in enumerate(runs):
            x, y = run.series(*metrics)
            if y and (panel.keeps_zero or any(y)) and not (panel.varying and len(set(y)) == 1):
                one = len(runs) == 1
                name, colour = (label, f"series{position}") if one else (run.label, f"run{index}")
                lines.setdefault(label, []).append(make_line(name, colour, index, *thinned(x, y, limits.chart_points)))
    if not lines:
        return []
    if len(runs) == 1:
        return [
            make_chart(panel.section, panel.title, panel.caption, panel.unit, [line for found in lines.values() for line in found])
        ]
    several = len(panel.lines) > 1
    return [
        make_chart(panel.section, f"{panel.title}: {label}" if several else panel.title, panel.caption, panel.unit, found)
        for label, found in lines.items()
    ]


def _zones(runs: Sequence[Run], limits: Limits) -> list[Chart]:
    caption = (
        "What each prompt of a batch was trained on. The gate asks how many of its rollouts are solved; as the policy learns, "
        "demonstrations should give way to rollouts."
    )
    found = []
    for index, run in enumerate(runs):
        counts = {step: [float(sum(zone == name for _, _, zone in groups)) for name in ZONES] for step, groups in run.gate.items()}
        if not counts:
            names = [f"fusion/prompts_{name}" for name in ZONES]
            counts = {step: [m.get(name, 0.0) for name in names] for step, m in run.metrics.items() if names[0] in m}
        series = _stack(counts, dict(enumerate(ZONES.values())), [f"zone-{name}" for name in ZONES], index, limits)
        if series and (len(runs) == 1 or len(series) > 1):  # beside others, a run of one zone is said in the table
            found.append(make_chart(_glance(runs), _of("Prompts by zone", run, runs), caption, "number", series, kind="areas"))
    return found


def _solved(runs: Sequence[Run], limits: Limits) -> list[Chart]:
    caption = "Each column is a step, each row a number of solved rollouts; the colour is the share of the prompts there."
    found = []
    for run in runs:
        solved = {step: [count for _, count, _ in groups] for step, groups in run.gate.items()}
        generated = {step for step, values in run.metrics.items() if values.get(GENERATED) != 0}
        steps = [step for step in solved if step in generated or step not in run.metrics]
        highest = max((count for step in steps for count in solved[step]), default=0)
        group_size = run.setting("actor_rollout_ref.rollout.n", 0)
        rows = max(highest, group_size if isinstance(group_size, int) else 0)
        if not steps or not rows:
            continue
        columns = spans(len(steps), limits.heat_columns)
        cells = [_histogram([count for step in steps[start:end] for count in solved[step]], rows) for start, end in columns]
        chart = make_chart(_glance(runs), _of("Solved rollouts per prompt", run, runs), caption, "share", [], kind="heat")
        ends = [steps[end - 1] for _, end in columns]
        found.append({**chart, "x": [steps[start] for start, _ in columns], "ends": ends, "rows": rows, "cells": cells})
    return found


def _histogram(counts: Sequence[int], highest: int) -> list[float]:
    return [round(counts.count(number) / len(counts), 4) if counts else 0.0 for number in range(highest + 1)]


def _stages(runs: Sequence[Run], limits: Limits) -> list[Chart]:
    caption = "Wall-clock seconds of each stage of a step; validation and checkpoints only where they happen."
    found = []
    for index, run in enumerate(runs):
        counts = {
            step: [values.get(f"timing_s/{stage}", 0.0) for stage in STAGES]
            for step, values in run.metrics.items()
            if "timing_s/step" in values
        }
        totals = [math.fsum(column) for column in zip(*counts.values(), strict=True)]
        least = LEAST_TIME * math.fsum(totals)
        shown = {i: name for i, name in enumerate(STAGES.values()) if totals and totals[i] > least}
        series = _stack(counts, shown, [f"series{i}" for i in range(len(shown))], index, limits)
        if series:
            found.append(make_chart("resources", _of("Time by stage", run, runs), caption, "seconds", series, kind="areas"))
    return found


def _stack(
    counts: dict[int, list[float]], labels: dict[int, str], colours: Sequence[str], run: int, limits: Limits
) -> list[dict[str, Any]]:
    """Series of a stacked chart; parts that are 0 throughout are left out."""
    steps = list(counts)
    series = []
    for colour, (position, label) in zip(colours, labels.items(), strict=True):
        values = [row[position] for row in counts.values()]
        if any(values):
            series.append(make_line(label, colour, run, *thinned(steps, values, limits.chart_points)))
    return series


def _glance(runs: Sequence[Run]) -> str:
    """The section of what the gate does: in the first line for one run; one chart per run would push the validation away."""
    return "glance" if len(runs) == 1 else "gate"


def _of(title: str, run: Run, runs: Sequence[Run]) -> str:
    return title if len(runs) == 1 else f"{title}: {run.label}"


def make_line(label: str, colour: str, run: int, x: Sequence[int], y: Sequence[float]) -> dict[str, Any]:
    """A series of a chart, see the module."""
    return {"label": label, "colour": colour, "run": run, "x": list(x), "y": [float(f"{value:.6g}") for value in y]}


def make_chart(section: str, title: str, caption: str, unit: str, series: list[dict[str, Any]], kind: str = "lines") -> Chart:
    """A chart without its place on the page, see the module."""
    return {"section": section, "title": title, "caption": caption, "unit": unit, "kind": kind, "series": series}


def spans(length: int, most: int) -> list[tuple[int, int]]:
    """[start, end) of at most `most` parts of nearly equal length.

    >>> spans(5, 2), spans(2, 5)
    ([(0, 2), (2, 5)], [(0, 1), (1, 2)])
    """
    parts = min(length, most)
    return [(length * part // parts, length * (part + 1) // parts) for part in range(parts)]


def thinned(x: Sequence[int], y: Sequence[float], most: int) -> tuple[list[int], list[float]]:
    """At most `most` points: means over equal spans, at the last step of each."""
    parts = spans(len(x), most)
    return [x[end - 1] for _, end in parts], [math.fsum(y[start:end]) / (end - start) for start, end in parts]
