"""Tables of the page as HTML. Every cell is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unify_posttrain.reporting.configuration import Row, flatten
from unify_posttrain.reporting.panels import GENERATED
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.text import escape, number, percent, short_names
from unify_posttrain.reporting.verdict import Validation, demonstration_share

NONE = "–"
MEASURES = ("demonstrations", "rollouts solved", "tokens generated", "time of steps")
TELLING = ("fusion.", "algorithm.", "data.", "actor_rollout_ref.")  # settings that a comparison names first


def table(head: Sequence[str], body: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table of text cells; the first of each line is its heading."""
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(
        f'<tr><th scope="row">{escape(line[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in line[1:])}</tr>'
        for line in body
    )
    return f'<div class="scroll"><table class="{kind}"><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'


def validation_table(curves: Sequence[Validation]) -> str:
    """First, best and last value of each source."""
    if not curves:
        return '<p class="advice">No validation so far (trainer.test_freq, trainer.val_before_train).</p>'
    head = ("validation", "first", "best", "last", "change")
    body = ([_title(curve), curve.text(curve.first), _best(curve), curve.text(curve.last), _gain(curve)] for curve in curves)
    return table(head, body, "numbers")


def run_table(runs: Sequence[tuple[Run, Sequence[Validation]]]) -> str:
    """The final numbers of several runs, a line each."""
    sources = list(dict.fromkeys(curve.source for _, curves in runs for curve in curves))
    names = short_names(sources)
    accuracies = [f"{names[source]}: first → best → last" for source in sources]
    head = ("run", "algorithm", "steps", *accuracies, *MEASURES, "task", "model")
    body = []
    for run, curves in runs:
        by_source = {curve.source: curve for curve in curves}
        planned = "" if run.planned is None else f" of {run.planned}"
        body.append(
            [run.label, run.algorithm, f"{run.done}{planned}"]
            + [_path(by_source[source]) if source in by_source else NONE for source in sources]
            + [*_measures(run), run.task, run.model]
        )
    return table(head, body, "numbers")


def _measures(run: Run) -> list[str]:
    """In the order of `MEASURES`: first → last share of demonstrations and of solved rollouts, tokens, and seconds."""
    shares = demonstration_share(run)[2]
    solved = run.series("fusion/solve_rate", GENERATED)[1]
    tokens, seconds = run.total("fusion/tokens_generated"), run.total("timing_s/step")
    return [
        f"{percent(shares[0])} → {percent(shares[-1])}" if any(shares) else NONE,
        f"{percent(solved[0])} → {percent(solved[-1])}" if solved else NONE,
        f"{tokens:,.0f}" if tokens else NONE,
        f"{seconds / 60:.1f} min" if seconds else NONE,
    ]


def _title(curve: Validation) -> str:
    title = curve.source if curve.n == 1 else f"{curve.source} (mean of {curve.n})"
    return title if curve.problems is None else f"{title}, {'about ' if curve.estimated else ''}{curve.problems} problems"


def _best(curve: Validation) -> str:
    step, value = curve.best
    return f"{curve.text(value)} (step {step})"


def _path(curve: Validation) -> str:
    return " → ".join(curve.text(value) for value in (curve.first, curve.best[1], curve.last))


def _gain(curve: Validation) -> str:
    gain = curve.last - curve.first
    return f"{100 * gain:+.1f} points" if curve.is_share else f"{'+' if gain > 0 else ''}{number(gain)}"


def difference_table(rows: Sequence[Row], labels: Sequence[str]) -> str:
    """The settings in which runs differ, the telling ones first."""

    def rank(row: Row) -> int:
        return next((number for number, prefix in enumerate(TELLING) if row.key.startswith(prefix)), len(TELLING))

    differing = sorted((row for row in rows if row.differs), key=rank)
    if not differing:
        return '<p class="advice">No setting differs between these runs.</p>'
    shown = table(["setting", *labels], ([row.key, *row.values] for row in differing), "settings")
    return f'<details class="differences"><summary>settings that differ: {len(differing)}</summary>{shown}</details>'


def configuration_table(rows: Sequence[Row], labels: Sequence[str], several: bool) -> str:
    """Every setting; those that stand out are marked, and shown alone until the reader asks for all."""
    if not rows:
        return '<p class="advice">No config.yaml in the run.</p>'
    compared = several or any(row.default is not None for row in rows)
    against = "between the runs" if several else "from the defaults of the chosen groups"
    count = sum(row.differs for row in rows)
    box = f'<label><input type="checkbox" id="only-differing" checked> only the {count} that differ {against}</label>'
    tools = '<div class="tools"><label>search <input type="search" id="setting-search" placeholder="key or value"></label>'
    tools += (box if compared else "") + '<span id="setting-count" role="status"></span></div>'
    head = ["setting", *labels] if several else ["setting", "value", *(["default"] if compared else [])]
    columns = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = "".join(_setting(row) for row in rows)
    return (
        f'{tools}<div class="scroll"><table class="settings"><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>'
    )


def _setting(row: Row) -> str:
    mark = ' class="differs"' if row.differs else ""
    values = "".join(f"<td>{escape(value)}</td>" for value in row.values)
    default = "" if row.default is None else f'<td class="default">{escape(row.default)}</td>'
    return f'<tr{mark}><th scope="row">{escape(row.key)}</th>{values}{default}</tr>'


def environment_table(runs: Sequence[Run]) -> str:
    """What recorded versions and host say, a column per run."""
    recorded: list[dict[str, Any]] = [dict(flatten(run.environment or {})) for run in runs]
    keys = list(dict.fromkeys(key for facts in recorded for key in facts))
    if not keys:
        return '<p class="advice">Not recorded: the run has no environment.json.</p>'
    body = ([key, *(facts.get(key, NONE) for facts in recorded)] for key in keys)
    return table(["", *(run.label for run in runs)], body, "settings")
