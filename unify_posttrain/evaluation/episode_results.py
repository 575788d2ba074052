"""What results.json says of episodes beside their accuracy: turns, outcomes, the other rule, splits, routes; and of losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from unify_posttrain.evaluation.benchmarks import Problem
from unify_posttrain.evaluation.store import Losses, Sample
from unify_posttrain.measures.statistics import Bootstrap, estimate
from unify_posttrain.tasks.navigation.routes import route_outcome

OUTCOME = "outcome_"  # how fields that count the turns of an outcome begin
# Fields that every environment has, or that have a place of their own in the results.
SAID = ("score", "acc", "turns", "right_turns", "first_acc", "truncated", "faults", "other_rule")


def episode_entry(
    samples: Sequence[Sample], problems: Sequence[Problem], split_by: Sequence[str], how: Bootstrap
) -> dict[str, Any]:
    """Of one source.

    Args:
        samples: episodes; at least one.
        problems: of the source.
        split_by: fields of `extra_info`.
        how: of intervals.

    Returns:
        first_acc (share of episodes whose first answer is right), turns (mean), step_accuracy (right turns of all turns),
        other_rule (share of turns that are right under the rule that is not asked for), outcomes (share of turns each), stops
        (share of episodes each), faults (turns that the environment failed to judge), means (of the other numbers that it gives
        of an episode, such as the searches and pages of vrag), where there are any; splits {field: {value: {problems,
        accuracy}}} and routes, where there are any.
    """
    extras = {problem.row: problem.extra_info for problem in problems}
    fields = [sample.fields or {} for sample in samples]
    turns = sum(each["turns"] for each in fields)
    stops = [str(sample.stop) for sample in samples]
    found: dict[str, Any] = {
        "first_acc": fmean(each["first_acc"] for each in fields),
        "turns": turns / len(fields),
        "step_accuracy": sum(each["right_turns"] for each in fields) / max(turns, 1),
        "other_rule": sum(each.get("other_rule", 0.0) * each["turns"] for each in fields) / max(turns, 1),
        "outcomes": {
            name.removeprefix(OUTCOME): sum(each[name] for each in fields) / max(turns, 1)
            for name in fields[0]
            if name.startswith(OUTCOME)
        },
        "stops": {stop: stops.count(stop) / len(stops) for stop in sorted(set(stops))},
        "faults": int(sum(each.get("faults", 0.0) for each in fields)),
    }
    means = {name: fmean(each[name] for each in fields) for name in fields[0] if name not in SAID and not name.startswith(OUTCOME)}
    if means:
        found["means"] = means
    splits = {name: _split(samples, extras, name, how) for name in split_by}
    if splits:
        found["splits"] = splits
    if all("route" in extra and "position" in extra for extra in extras.values()):
        found["routes"] = _routes(samples, extras)
    return found


def _split(samples: Sequence[Sample], extras: Mapping[int, Mapping[str, Any]], name: str, how: Bootstrap) -> dict[str, Any]:
    """The accuracy of the problems that have a value in a field, by the value."""
    scores: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        value = extras[sample.row].get(name)
        scores["null" if value is None else str(value).lower()][sample.row].append(float(sample.correct))
    return {
        value: {"problems": len(rows), "accuracy": asdict(estimate([[fmean(each) for each in rows.values()]], how))}
        for value, rows in sorted(scores.items())
    }


def _routes(samples: Sequence[Sample], extras: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """A route is solved if every position is. The papers' accuracy per step counts positions up to the first that is not."""
    routes: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for sample in samples:
        extra, fields = extras[sample.row], sample.fields or {}
        routes[sample.number, int(extra["route"])].append(
            (int(extra["position"]), int(fields["right_turns"]), int(fields["turns"]))
        )
    reached: list[tuple[int, int]] = []
    solved = 0
    for positions in routes.values():
        counts = [(right, attempts) for _, right, attempts in sorted(positions)]
        outcome = route_outcome(counts)
        solved += outcome.solved
        reached += counts if outcome.solved else counts[: next(i for i, (right, _) in enumerate(counts) if not right) + 1]
    return {
        "routes": len(routes),
        "solved": solved / len(routes),
        "reached_accuracy": sum(right for right, _ in reached) / max(sum(attempts for _, attempts in reached), 1),
    }


def loss_entry(losses: Losses, rows: Sequence[int]) -> dict[str, Any]:
    """Mean loss of the worked answers of some rows, in nats: per answer and per token."""
    of_rows = [losses[row] for row in rows if row in losses]
    total, tokens = sum(loss for loss, _ in of_rows), sum(count for _, count in of_rows)
    return {"answers": len(of_rows), "per_answer": total / max(len(of_rows), 1), "per_token": total / max(tokens, 1)}
