"""Write one HTML page about a run, or about several runs beside each other.

    python -m unify_posttrain.report outputs/runs/hpt                          # outputs/runs/hpt/report.html
    python -m unify_posttrain.report outputs/runs/hpt outputs/runs/grpo        # outputs/runs/report.html
    python -m unify_posttrain.report outputs/runs/gp-sft --evaluation outputs/evaluations/gp-sft   # with its checkpoints' curve

The page is one file that loads nothing: it can be opened anywhere, mailed and archived. Runs in progress are welcome.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from unify_posttrain.output import guarded_output, write
from unify_posttrain.reporting.build import build_report
from unify_posttrain.reporting.settings import load_settings

NAME = "report.html"
LIMITS = {
    "chart_points": "points per curve",
    "heat_columns": "columns of the heat map",
    "rollout_steps": "steps in the browser of rollouts",
    "rollout_prompts": "prompts of each of them",
    "rollout_rows": "rollouts of each prompt",
    "validation_steps": "validations in the browser of validation samples",
    "validation_prompts": "prompts followed through them",
    "characters": "characters of a text; longer ones are cut",
    "picture_side": "pixels of the longer side of a picture",
    "picture_quality": "quality of its encoding, 1 to 100",
    "picture_bytes": "bytes of a picture; a larger one is made smaller",
    "pictures_bytes": "bytes of all pictures of the page",
    "picture_pixels": "pixels of a file beyond which it is not opened",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-report`."""
    with guarded_output():
        _write_page(_parser().parse_args(arguments))


def _write_page(options: argparse.Namespace) -> None:
    try:
        settings = load_settings(**{name: getattr(options, name) for name in LIMITS})
        page = build_report(
            options.runs,
            settings=settings,
            rollouts=options.rollouts,
            evaluations=options.evaluation,
            forgetting=options.forgetting,
            pictures=options.pictures,
        )
    except ValueError as error:
        sys.exit(f"error: {error}")
    output = options.output or default_output(options.runs)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    write(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def default_output(runs: Sequence[Path]) -> Path:
    """RUN/report.html for one run; for several, report.html in the folder that holds the first."""
    return (runs[0] if len(runs) == 1 else runs[0].resolve().parent) / NAME


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m unify_posttrain.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run (trainer.run_dir)")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help="default: RUN/report.html; several runs: report.html beside the first"
    )
    parser.add_argument(
        "--rollouts", metavar="FOLDER", type=Path,
        help="the run's trainer.rollout_data_dir, if it lies outside of RUN (with one run only)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluation", metavar="FOLDER", type=Path, action="append", default=[],
        help="output of unify_posttrain.evaluate, e.g. of the run's checkpoints; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--forgetting", metavar="FOLDER", type=Path, action="append", default=[],
        help="output of unify_posttrain.analyze forgetting; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--pictures", metavar="FOLDER", type=Path, action="append", default=[],
        help="folder with pictures or pages that may be shown, if it is neither in RUN nor below UNIFY_HOME; may be repeated",
    )  # fmt: skip
    limits = parser.add_argument_group("how much the page holds (defaults in conf/report.yaml)")
    defaults: dict[str, int] = asdict(load_settings().limits)
    for name, meaning in LIMITS.items():
        option = "--" + name.replace("_", "-")
        limits.add_argument(option, metavar="N", type=int, help=f"{meaning} (default: {defaults[name]})")
    return parser


if __name__ == "__main__":
    main()
