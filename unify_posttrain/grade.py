"""Grade a file of responses by several versions of the reward and by math-verify, and show where they differ.

    python -m unify_posttrain.grade responses.jsonl                            # versions 0 to 7; page: responses.grades.html
    python -m unify_posttrain.grade outputs/runs/hpt/samples/100.jsonl --version 3 6
    python -m unify_posttrain.grade cases.parquet --response answer --ground-truth solution --json

JSON lines, a JSON array or parquet with the columns response and ground_truth, or output and gts, as validation writes them. With a
column expected (0 or 1) it counts false accepts and false rejects, by family if there is such a column. A column version names the
version of a row, whose verdict is called own.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from unify_posttrain.output import clean_line, guarded_output, write

BAD_INPUT = 2  # exit code, as argparse's for a wrong command line


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unify-grade`."""
    with guarded_output():
        parser = _parser()
        options = parser.parse_args(arguments)
        try:
            _grade(options)
        except ValueError as error:
            parser.exit(BAD_INPUT, f"error: {clean_line(error)}\n")


def _grade(options: argparse.Namespace) -> None:
    from rich.console import Console

    from unify_posttrain.auditing.judging import judge
    from unify_posttrain.auditing.page import build_page
    from unify_posttrain.auditing.printing import show
    from unify_posttrain.auditing.records import read_records
    from unify_posttrain.auditing.settings import load_settings
    from unify_posttrain.auditing.summary import as_json, summarise
    from unify_posttrain.rewards.grading import VERSIONS, check_version

    given = {name: getattr(options, name) for name in ("workers", "timeout_seconds", "memory_mb")}
    settings = load_settings(**given)
    versions = [check_version(version) for version in dict.fromkeys(options.version or VERSIONS)]
    judged = judge(read_records(options.file, options.response, options.ground_truth), versions, settings)
    summary = summarise(judged, settings)
    if options.json:
        sys.stdout.write(json.dumps(as_json(judged, summary), indent=1) + "\n")
    else:
        show(summary, Console(width=None if sys.stdout.isatty() else 150))
    output = options.output or (None if options.json else Path(f"{options.file.stem}.grades.html"))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(build_page(options.file.name, judged, summary, settings), encoding="utf-8")
        if not options.json:
            write(f"{output} ({output.stat().st_size / 1e6:.1f} MB)")


def _parser() -> argparse.ArgumentParser:
    from unify_posttrain.auditing.settings import load_settings

    parser = argparse.ArgumentParser(
        prog="python -m unify_posttrain.grade", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="responses and ground truths: .jsonl, .json or .parquet")
    parser.add_argument("--version", metavar="N", type=int, nargs="+", help="versions of the reward (default: all)")
    parser.add_argument("--response", metavar="COLUMN", help="column of the responses (default: response, or output)")
    parser.add_argument("--ground-truth", metavar="COLUMN", help="column of the ground truths (default: ground_truth, or gts)")
    parser.add_argument("-o", "--output", metavar="PAGE", type=Path, help="the page (default: NAME.grades.html in this folder)")
    parser.add_argument("--json", action="store_true", help="everything as JSON to standard output; a page only with --output")
    defaults = asdict(load_settings())
    for name, kind, meaning in (
        ("workers", int, "processes"),
        ("timeout_seconds", float, "of one verdict"),
        ("memory_mb", int, "address space of one process"),
    ):
        option = "--" + name.replace("_", "-")
        parser.add_argument(option, metavar="N", type=kind, help=f"{meaning} (default: {defaults[name]}, conf/grade.yaml)")
    return parser


if __name__ == "__main__":
    main()
