"""The study's raw results, docs/study/NAME.json per run, and the table of docs/study.md that is made of them.

    python -m tests.study_table outputs/study     # take the finished runs of a study's folder
    python -m tests.docs_tables --write           # then the table

A file holds the run's record without what is of one machine (command, log) and what `study.outcomes` read from its metrics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from unify_posttrain.measures.intervals import Interval, paired_difference, t_interval
from unify_posttrain.study.outcomes import Outcome, measure, read_metrics
from unify_posttrain.study.records import METRICS, read_records

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "study"
TASKS = ("arithmetic", "countdown")
BASELINE, CONFIDENCE = "sft_then_rl", 0.95
OF_ONE_MACHINE = ("command", "log", "log_tail")

Runs = Mapping[tuple[str, str], Mapping[int, Outcome]]  # (task, algorithm) -> seed -> outcome


def collect(study: Path, folder: Path = FOLDER) -> list[Path]:
    """Copy the finished runs; those of seeds and algorithms that were not run again stay as they are.

    Returns:
        the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for record in read_records(study):
        if not record.finished:
            continue
        outcome = measure(read_metrics(study / "runs" / record.name / METRICS))
        content = {key: value for key, value in asdict(record).items() if key not in OF_ONE_MACHINE} | {"outcome": asdict(outcome)}
        written.append(folder / f"{record.name}.json")
        written[-1].write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return written


def records(folder: Path = FOLDER) -> list[dict[str, Any]]:
    """All files, as they stand."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]


def read(folder: Path = FOLDER) -> Runs:
    found: dict[tuple[str, str], dict[int, Outcome]] = {}
    for record in records(folder):
        outcome = dict(record["outcome"])
        curves = {split: {int(step): share for step, share in curve.items()} for split, curve in outcome.pop("accuracy").items()}
        found.setdefault((record["task"], record["algorithm"]), {})[record["seed"]] = Outcome(curves, **outcome)
    return found


def study_table(folder: Path = FOLDER) -> tuple[tuple[str, ...], list[list[str]]]:
    """Header and rows: accuracy on hard and easy problems, difference to the baseline, demonstrations; best on both tasks first.

    Raises:
        ValueError: no runs.
    """
    runs = read(folder)
    if not runs:
        raise ValueError(f"{folder} holds no runs; collect those of a study first (see above)")
    columns = ("hard", f"− `{BASELINE}`", "easy", "demonstrations")
    header = ("algorithm", *(f"{task}: {column}" if column == "hard" else column for task in TASKS for column in columns))
    names = sorted({name for _, name in runs}, key=lambda name: (-_mean(runs, name), name))
    rows = [[f"`{name}`", *(cell for task in TASKS for cell in _cells(runs, task, name))] for name in names]
    return header, [["base model", *(cell for task in TASKS for cell in _base(runs, task))], *rows]


def _mean(runs: Runs, name: str) -> float:
    """Over the tasks, of the accuracy on hard problems."""
    return sum(_after(runs, task, name, "hard").mean or 0.0 for task in TASKS) / len(TASKS)


def _after(runs: Runs, task: str, name: str, split: str) -> Interval:
    return t_interval([outcome.after(split) for outcome in runs.get((task, name), {}).values()], CONFIDENCE)


def _base(runs: Runs, task: str) -> list[str]:
    outcomes = [outcome for (of, _), seeds in runs.items() if of == task for outcome in seeds.values()]
    hard, easy = (t_interval([outcome.before(split) for outcome in outcomes], CONFIDENCE).mean for split in ("hard", "easy"))
    return [_percent(hard), "", _percent(easy), ""]


def _cells(runs: Runs, task: str, name: str) -> list[str]:
    outcomes, baseline = runs.get((task, name), {}), runs.get((task, BASELINE), {})
    difference = paired_difference(
        *({seed: each.after("hard") for seed, each in of.items()} for of in (outcomes, baseline)), CONFIDENCE
    )
    shown = "0" if name == BASELINE else _signed(difference)
    return [_interval(_after(runs, task, name, "hard")), shown, _interval(_after(runs, task, name, "easy")), _given(outcomes)]


def _given(outcomes: Mapping[int, Outcome]) -> str:
    """Rows trained on a demonstration, and tokens of hints for those methods that have them."""
    rows, hints = (
        t_interval([getattr(outcome, key) for outcome in outcomes.values()], CONFIDENCE).mean
        for key in ("demonstrations", "hint_tokens")
    )
    if hints:
        return f"{hints:,.0f} tokens of hints".replace(",", " ")
    return "-" if rows is None else f"{rows:.0f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _interval(of: Interval) -> str:
    return _percent(of.mean) + ("" if of.half_width is None else f" ± {100 * of.half_width:.1f}")


def _signed(of: Interval) -> str:
    """With a star where the interval excludes 0."""
    if of.mean is None:
        return "-"
    star = "*" if of.half_width is not None and abs(of.mean) > of.half_width else ""
    return f"{100 * of.mean:+.1f}".replace("-", "−") + ("" if of.half_width is None else f" ± {100 * of.half_width:.1f}{star}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the study: outputs/study")
    print(f"{len(collect(parser.parse_args().folder))} runs are in docs/study")


if __name__ == "__main__":
    main()
