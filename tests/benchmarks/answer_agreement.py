"""How often do our verdicts agree with the argued ones, and how often those of math-verify alone?

    python -m tests.benchmarks.answer_agreement [--cases FILE]

On the argued pairs (tests/rewards/answer_pairs.py), by group, and on collected cases (tests/rewards/answers/cases.jsonl, or a FILE
of lines with response, ground_truth, version, expected and family), by family and with the false accepts of both. Expect half a
minute on 2 cores. All run in the same pool of processes with the same limits.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.rewards.answer_pairs import ALL, PAIRS
from unify_posttrain.rewards.equality import same_by_math_verify
from unify_posttrain.rewards.pool import KillablePool

LIMITS = {"workers": 2, "timeout_seconds": 20.0, "memory_mb": 2048}


def math_verify_alone(item: Mapping[str, str]) -> bool:
    """Both texts in math mode, its own extraction of LaTeX, its own comparison."""
    return same_by_math_verify(item["answer"], item["gold"])


def verdicts(target: str) -> list[bool | None]:
    """One per pair, None where the grader failed."""
    with KillablePool(target, **LIMITS) as pool:
        return [outcome.value for outcome in pool.map([{"answer": answer, "gold": gold} for _, answer, gold, _ in ALL])]


def of_cases(file: Path, console: Console) -> None:
    """Whole responses: by their version, and by version 4, which is math-verify alone."""
    cases = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    with KillablePool("unify_posttrain.rewards.grading:grade_item", **LIMITS) as pool:
        found = []
        for version in (None, 4):
            items = [
                {"text": case["response"], "gold": case["ground_truth"], "version": version or case["version"]} for case in cases
            ]
            found.append([outcome.value["acc"] if outcome.value else 0.0 for outcome in pool.map(items)])
    table = Table(title=f"{len(cases)} cases of {file.name}", title_justify="left")
    for column in ("family", "cases", "this package", "its false accepts", "math-verify alone", "its false accepts"):
        table.add_column(column, justify="left" if column == "family" else "right")
    rows = list(zip(cases, *found, strict=True))
    for family in (*dict.fromkeys(case["family"] for case in cases), None):
        chosen = [row for row in rows if family in (None, row[0]["family"])]
        cells = [family or "all", str(len(chosen))]
        for which in (1, 2):
            right = sum(row[which] == row[0]["expected"] for row in chosen)
            accepted = sum(row[which] == 1.0 and not row[0]["expected"] for row in chosen)
            cells += [str(right) if family else f"{right} ({right / len(chosen):.1%})", str(accepted)]
        table.add_row(*cells, style=None if family else "bold")
    console.print(table)


def main() -> None:
    """Print agreement with the argued verdicts by group, then every pair on which math-verify differs from them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=Path, default=Path(__file__).parents[1] / "rewards" / "answers" / "cases.jsonl")
    arguments = parser.parse_args()
    ours = verdicts("unify_posttrain.rewards.grading:compare_item")
    theirs = verdicts("tests.benchmarks.answer_agreement:math_verify_alone")
    table = Table(title=f"Agreement with {len(ALL)} argued verdicts", title_justify="left")
    for column in ("group", "pairs", "this package", "math-verify alone"):
        table.add_column(column, justify="left" if column == "group" else "right")
    rows = list(zip(ALL, ours, theirs, strict=True))
    for group in (*PAIRS, None):
        chosen = [row for row in rows if group in (None, row[0][0])]
        right = [sum(row[which] is row[0][3] for row in chosen) for which in (1, 2)]
        table.add_row(group or "all", str(len(chosen)), *(f"{count} ({count / len(chosen):.1%})" for count in right))
    console = Console(width=120)
    console.print(table)
    of_cases(arguments.cases, console)
    both = sum(our is their for _, our, their in rows)
    console.print(
        f"The two agree with each other on {both} of {len(rows)} pairs ({both / len(rows):.1%}). math-verify alone differs on:"
    )
    for (group, answer, gold, verdict), _, their in rows:
        if their is not verdict:
            console.print(
                f"  {group}: {answer[:40]!r} against {gold[:40]!r}: {their}, argued {verdict}", markup=False, soft_wrap=True
            )


if __name__ == "__main__":
    main()
