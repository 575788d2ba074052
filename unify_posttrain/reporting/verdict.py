"""Is it working? Accuracy from first to last validation, what the gate did meanwhile, and one sentence about both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

from unify_posttrain.reporting.panels import GENERATED
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.settings import VerdictRules
from unify_posttrain.reporting.text import listed, number, percent, short_names

CORE = re.compile(r"val-core/(?P<source>.+)/(?P<variable>[^/]+)/mean@(?P<n>\d+)")
ACCURACY = "acc"
STATUSES = {
    "learning": "Working",
    "mixed": "Mixed",
    "unchanged": "No change yet",
    "worse": "Getting worse",
    "early": "Too early to say",
}


@dataclass(frozen=True)
class Validation:
    """One source's curve.

    Attributes:
        source, name: as the metrics call it, and without what all sources of the run begin with.
        steps, values: of every validation.
        n: samples per problem.
        problems: how many; None where nothing says it.
        estimated: the run does not record its problems, they are an equal share of its validation samples.
        is_share: a share, not a reward.
    """

    source: str
    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]
    n: int
    problems: int | None
    estimated: bool
    is_share: bool

    @property
    def first(self) -> float:
        return self.values[0]

    @property
    def last(self) -> float:
        return self.values[-1]

    @property
    def best(self) -> tuple[int, float]:
        """(step, value) of the highest value, the first one of equals."""
        value = max(self.values)
        return self.steps[self.values.index(value)], value

    def text(self, value: float) -> str:
        return percent(value) if self.is_share else number(value)

    def change(self, rules: VerdictRules) -> int:
        """1 if the last value is higher than the first by more than chance, -1 if lower, 0 otherwise.

        Two independent binomial shares of `problems` differ by more than z √(p₀(1-p₀)/N + p₁(1-p₁)/N); the problems are the same
        each time, so the true error is smaller. Without N, or for a reward, `min_change` decides.
        """
        return sign(self.last - self.first, self.noise(self.first, self.last, rules))

    def noise(self, before: float, after: float, rules: VerdictRules) -> float:
        """Difference of two values up to which chance explains it."""
        if self.problems and self.is_share:
            return rules.z * sqrt((before * (1 - before) + after * (1 - after)) / self.problems)
        return rules.min_change


@dataclass(frozen=True)
class Verdict:
    """`status` is a key of `STATUSES`; `sentence` says what it rests on."""

    status: str
    sentence: str


def sign(difference: float, noise: float) -> int:
    return (difference > noise) - (difference < -noise)


def validations(run: Run) -> list[Validation]:
    """The validation curves of a run, by source: accuracy if the reward gives one, else the reward."""
    found = {match["source"]: match for match in map(CORE.fullmatch, _names(run)) if match}
    names = short_names(list(found))
    curves = []
    for source, match in found.items():
        steps, values = run.series(match[0])
        recorded = run.series(f"val-eval/{source}/problems")[1]
        problems = int(recorded[-1]) if recorded else run.validated // (len(found) * int(match["n"]))
        curves.append(
            Validation(
                source=source,
                name=names[source],
                steps=tuple(steps),
                values=tuple(values),
                n=int(match["n"]),
                problems=problems or None,
                estimated=not recorded,
                is_share=match["variable"] == ACCURACY and min(values) >= 0 and max(values) <= 1,
            )
        )
    return curves


def _names(run: Run) -> list[str]:
    """Every metric of the run, in the order of first occurrence."""
    return list(dict.fromkeys(name for values in run.metrics.values() for name in values))


def ends(values: Sequence[float], window: float) -> tuple[float, float] | None:
    """Means over the first and the last part of a series; None if it has fewer than two values."""
    if len(values) < 2:
        return None
    part = max(1, round(window * len(values)))
    return sum(values[:part]) / part, sum(values[-part:]) / part


def demonstration_share(run: Run) -> tuple[str, list[int], list[float]]:
    """(what it is a share of, steps, values): of prompts where the gate routes them, else of trained tokens."""
    steps, shares = [], []
    for step, values in run.metrics.items():
        zones = [values.get(f"fusion/prompts_{zone}", 0.0) for zone in ("sft", "off", "rl", "skipped")]
        if sum(zones):
            steps.append(step)
            shares.append((zones[0] + zones[1]) / sum(zones))
    if any(shares):
        return "prompts trained on demonstrations", steps, shares
    return "demonstrations among trained tokens", *run.series("fusion/demo_token_ratio")


def judge(run: Run, rules: VerdictRules) -> Verdict:
    """The verdict on a run."""
    solved = ends(run.series("fusion/solve_rate", GENERATED)[1], rules.window)
    curves = [curve for curve in validations(run) if len(curve.values) > 1]
    changes = [curve.change(rules) for curve in curves]
    if not curves and solved is not None:
        changes = [sign(solved[1] - solved[0], rules.min_change)]
    parts = _accuracies(curves, changes) or ["Fewer than two validations so far" if run.done else "No step has been trained yet"]
    what, _, shares = demonstration_share(run)
    share = ends(shares, rules.window) if any(shares) else None
    if share is not None:
        parts.append(_trend(f"the share of {what}", share, rules))
    if solved is not None:
        parts.append(_trend("the share of rollouts solved", solved, rules))
    return Verdict(_status(changes), "; ".join(parts) + ".")


def _status(changes: Sequence[int]) -> str:
    if not changes:
        return "early"
    up, down = 1 in changes, -1 in changes
    return "mixed" if up and down else "learning" if up else "worse" if down else "unchanged"


def _accuracies(curves: Sequence[Validation], changes: Sequence[int]) -> list[str]:
    if not curves:
        return []
    order = sorted(zip(curves, changes, strict=True), key=lambda pair: -abs(pair[0].last - pair[0].first))
    parts = [f"{curve.name} {curve.text(curve.first)} → {curve.text(curve.last)}" for curve, change in order if change]
    same = [f"{curve.name} ({_flat(curve)})" for curve, change in order if not change]
    known = all(curve.problems and curve.is_share for curve, change in order if not change)
    parts += [f"{listed(same)} {'within the noise' if known else 'about as before'}"] if same else []
    return [f"{'Accuracy' if all(curve.is_share for curve in curves) else 'Validation'}: {parts[0]}", *parts[1:]]


def _flat(curve: Validation) -> str:
    first, last = curve.text(curve.first), curve.text(curve.last)
    return last if first == last else f"{first} → {last}"


def _trend(what: str, values: tuple[float, float], rules: VerdictRules) -> str:
    first, last = values
    verb = {1: "rose", -1: "fell"}.get(sign(last - first, rules.min_change))
    return f"{what} {verb} from {percent(first)} to {percent(last)}" if verb else f"{what} stayed at {percent(last)}"
