"""How often do the verdicts on the argued answer pairs (tests/rewards/answer_pairs.py) agree: ours, and those of math-verify alone?

    python -m tests.benchmarks.answer_agreement

Expect about a minute on 2 cores. Both run in the same pool of processes with the same limits.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def main() -> None:
    """Print agreement with the argued verdicts by group, then every pair on which math-verify differs from them."""
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
