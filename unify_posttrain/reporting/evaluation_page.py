"""The page of one evaluation: its table, its curves and the browser of its samples, as `report` shows them beside a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unify_posttrain.reporting.charts import charts
from unify_posttrain.reporting.evaluations import Key, Question, browser, curves, read_evaluations, section
from unify_posttrain.reporting.page import document, figures, page_script
from unify_posttrain.reporting.panels import EVALUATIONS, ZONES
from unify_posttrain.reporting.settings import Settings, load_settings
from unify_posttrain.reporting.text import escape
from unify_posttrain.reporting.thumbnails import Thumbnails

NAME = "samples.html"


def build_evaluation_page(
    folder: Path,
    questions: Mapping[Key, Question] | None = None,
    pictures: Sequence[Path] = (),
    settings: Settings | None = None,
) -> str:
    """The HTML; it loads nothing, and texts of models and data are escaped.

    Args:
        folder: output of `unify_posttrain.evaluate`.
        questions: what its problems ask, by benchmark and row.
        pictures: folders that pictures may be opened in.
        settings: how much the page holds; None: `conf/report.yaml`.

    Raises:
        ValueError: the folder is no evaluation.
    """
    limits = (load_settings() if settings is None else settings).limits
    found, thumbnails = read_evaluations([folder]), Thumbnails(limits)
    shown, drawn = browser(found, limits, thumbnails, pictures, questions), charts((), limits, curves(found))
    data = {
        "runs": [], "zones": ZONES, "rollouts": [], "validation": [], "charts": drawn, "evaluations": shown,
        "pictures": thumbnails.uris,
    }  # fmt: skip
    content = f"{figures(drawn)}{section(found, (), shown)}"
    name = found[0].name
    return document(name, "Evaluation", f"<h1>{escape(name)}</h1>", [(EVALUATIONS, "Benchmarks", content)], data, page_script())
