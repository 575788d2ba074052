"""From folders of runs to the page: reads, judges, and hands plain data to `page`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.reporting.alerts import alerts
from unify_posttrain.reporting.charts import charts
from unify_posttrain.reporting.configuration import rows
from unify_posttrain.reporting.evaluations import browser, curves, read_evaluations, read_verdicts, section
from unify_posttrain.reporting.page import Page, Summary, render
from unify_posttrain.reporting.panels import ZONES
from unify_posttrain.reporting.pictures import pictures_of
from unify_posttrain.reporting.run import Run, read_runs
from unify_posttrain.reporting.samples import rollout_folder, rollout_steps, validation_samples
from unify_posttrain.reporting.settings import Limits, Settings, load_settings
from unify_posttrain.reporting.thumbnails import Thumbnails
from unify_posttrain.reporting.verdict import judge, validations


def build_report(
    runs: Sequence[Path],
    *,
    settings: Settings | None = None,
    rollouts: Path | None = None,
    evaluations: Sequence[Path] = (),
    forgetting: Sequence[Path] = (),
    pictures: Sequence[Path] = (),
) -> str:
    """One HTML page about one run, or about several beside each other.

    Args:
        runs: folders of runs (`trainer.run_dir`), in progress or finished.
        settings: how much the page holds; None: `conf/report.yaml`.
        rollouts: folder of the dump (`trainer.rollout_data_dir`) if it is not inside the run; with one run only.
        evaluations: output folders of `unify_posttrain.evaluate`.
        forgetting: of `unify_posttrain.analyze forgetting`.
        pictures: folders that pictures may be opened in, beside those of `unify_posttrain.reporting.pictures`.

    Returns:
        A page that loads nothing from anywhere: style, script and data are in it. Texts of models and data are escaped.

    Raises:
        ValueError: no run, a folder that is none, one given twice, `rollouts` with several runs or without a dump in it, or an
            evaluation or analysis that is none.
    """
    settings = load_settings() if settings is None else settings
    found = read_runs([Path(folder) for folder in runs])
    if rollouts is not None and len(found) > 1:
        raise ValueError(f"--rollouts {rollouts}: belongs to one run, and {len(found)} are given; move the dumps to RUN/rollouts")
    if rollouts is not None and not any(rollouts.glob("*.jsonl")):
        raise ValueError(f"--rollouts {rollouts}: holds no file STEP.jsonl; give the run's trainer.rollout_data_dir")
    limits = settings.limits.shared(len(found))
    summaries = [
        Summary(run, judge(run, settings.verdict), validations(run), alerts(run, settings), _dump_advice(run)) for run in found
    ]
    checked, verdicts = read_evaluations(evaluations), read_verdicts(forgetting)
    thumbnails = Thumbnails(limits)
    data = {
        **_data(found, limits, rollouts, thumbnails, pictures),
        "evaluations": browser(checked, limits, thumbnails, pictures),
        "pictures": thumbnails.uris,
    }
    benchmarks = section(checked, verdicts, data["evaluations"])
    return render(Page(summaries, charts(found, limits, curves(checked)), rows(found), data, benchmarks))


def _data(
    runs: Sequence[Run], limits: Limits, folder: Path | None, thumbnails: Thumbnails, given: Sequence[Path]
) -> dict[str, Any]:
    """What the script of the page reads beside the charts."""
    return {
        "runs": [run.label for run in runs],
        "zones": ZONES,
        "rollouts": [rollout_steps(run, limits, folder, pictures_of(run, thumbnails, given, folder)) for run in runs],
        "validation": [validation_samples(run, limits) for run in runs],
    }


def _dump_advice(run: Run) -> str:
    """How to get a dump of rollouts, in terms of this run."""
    configured = run.setting("trainer.rollout_data_dir")
    if configured and not rollout_folder(run).is_dir():
        return f"trainer.rollout_data_dir={configured} lies outside of the run's folder: give it with --rollouts."
    if configured:
        return f"trainer.rollout_data_dir={configured} holds nothing yet."
    return f"Start the run with trainer.rollout_data_dir={run.folder / 'rollouts'} to see them here."
