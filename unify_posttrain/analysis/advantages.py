"""How the advantages of a run are distributed, step by step, read from its rollout dump (`trainer.rollout_data_dir`).

One value per turn where the advantage changes within an answer from turn to turn (turn credit), one per trajectory otherwise.
Rollouts alone count: demonstrations and what the gate dropped are counted apart.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unify_posttrain.analysis.plots import save, start
from unify_posttrain.analysis.records import Records
from unify_posttrain.analysis.tables import number, page, percent, table
from unify_posttrain.runs.files import write_text
from unify_posttrain.untrusted.documents import DocumentError, parse

logger = logging.getLogger(__name__)

BINS, LOWEST, HIGHEST = 20, -3.0, 3.0  # of the entropy, in standard deviations: its definition
FIGURE, HEAT = "advantages.png", "advantages_heat.png"
NOT_SAMPLED = ("demonstration", "dropped", "padding")
CREDITS = ("trajectory", "turn")


def moments(values: Sequence[float]) -> dict[str, float]:
    """Mean, deviation, skew and excess kurtosis (moments of the population), shares of zero and positive values, and the entropy of
    the standardised values in nats over 20 bins of [-3, 3) whose ends are open. Equal values have no spread: all but the mean and
    the shares is 0.

    Raises:
        ValueError: no value.
    """
    if not len(values):
        raise ValueError("advantages: a step without values has no distribution; leave it out")
    array = np.asarray(values, dtype=float)
    mean = float(array.mean())
    found = {"mean": mean, "deviation": 0.0, "skew": 0.0, "excess_kurtosis": 0.0, "entropy": 0.0}
    standard = standardised(array)
    if standard is not None:
        found |= {
            "deviation": float(array.std()),
            "skew": float((standard**3).mean()),
            "excess_kurtosis": float((standard**4).mean()) - 3.0,
            "entropy": _entropy(standard),
        }
    return {**found, "zero": float((array == 0).mean()), "positive": float((array > 0).mean())}


def standardised(values: np.ndarray) -> np.ndarray | None:
    """Values in deviations from their mean; None if they have no spread."""
    deviation = values.std() if values.min() < values.max() else 0.0
    return (values - values.mean()) / deviation if deviation > 0 else None


def histogram(standard: np.ndarray) -> np.ndarray:
    """(20,) counts of standardised values; what is beyond an end is in the last bin there."""
    places = np.floor((standard - LOWEST) / (HIGHEST - LOWEST) * BINS).astype(int).clip(0, BINS - 1)
    return np.bincount(places, minlength=BINS)


def _entropy(standard: np.ndarray) -> float:
    shares = histogram(standard) / len(standard)
    return float(-sum(share * math.log(share) for share in shares if share > 0))


@dataclass(frozen=True)
class Trajectory:
    """The advantages of one rollout: one value, or one per turn."""

    group: str
    values: tuple[float, ...]


def trajectory(row: Mapping[str, Any], credit: str) -> Trajectory | None:
    """The advantages of a dumped row; None if it is no rollout, or none of its tokens is trained.

    Args:
        row: fields of `unify_posttrain.trainer.dump`.
        credit: turn, or trajectory: then advantages that differ from token to token (GAE) are averaged over the characters that
            they hold for, since a dump has no token counts.
    """
    if row.get("row_kind", "rollout") in NOT_SAMPLED:
        return None
    given, segments = row.get("advantage"), row.get("segments") or []
    group = str(row.get("uid"))
    if isinstance(given, int | float) and math.isfinite(given):
        sampled = [text for kind, text in segments if kind == "on"]
        return Trajectory(group, (float(given),) * (max(1, len(sampled)) if credit == "turn" else 1))
    if not isinstance(given, list) or len(given) != len(segments):
        return None
    parts = [
        (float(value), len(text))
        for (kind, text), value in zip(segments, given, strict=True)
        if kind == "on" and isinstance(value, int | float) and math.isfinite(value)
    ]
    if not parts:
        return None
    if credit == "turn":
        return Trajectory(group, tuple(value for value, _ in parts))
    characters = sum(length for _, length in parts) or 1
    return Trajectory(group, (sum(value * length for value, length in parts) / characters,))


def without_spread(trajectories: Sequence[Trajectory]) -> tuple[int, int]:
    """(groups whose rollouts all have the same advantages, groups); groups of one rollout do not count."""
    groups: dict[str, list[tuple[float, ...]]] = {}
    for each in trajectories:
        groups.setdefault(each.group, []).append(each.values)
    several = [members for members in groups.values() if len(members) > 1]
    return sum(len(set(members)) == 1 for members in several), len(several)


def step_entry(step: int, rows: Sequence[Mapping[str, Any]], credit: str) -> dict[str, Any] | None:
    """The numbers of one step; None without a trained rollout."""
    found = [each for row in rows if (each := trajectory(row, credit)) is not None]
    if not found:
        return None
    values = [value for each in found for value in each.values]
    flat, groups = without_spread(found)
    standard = standardised(np.asarray(values))
    return {
        "step": step,
        "rollouts": len(found),
        "values": len(values),
        **moments(values),
        "groups": groups,
        "groups_without_spread": flat,
        "demonstrations": sum(row.get("row_kind") == "demonstration" for row in rows),
        "dropped": sum(row.get("row_kind") == "dropped" for row in rows),
        "histogram": None if standard is None else histogram(standard).tolist(),
    }


def rollout_files(run: Path, rollouts: Path | None) -> dict[int, Path]:
    """Step -> file of a run's rollout dump.

    Raises:
        ValueError: there is none.
    """
    if not run.is_dir():
        raise ValueError(f"run={run} is no folder; give trainer.run_dir of a run, e.g. run=outputs/runs/grpo")
    folder = run / "rollouts" if rollouts is None else rollouts
    found = {int(path.stem): path for path in folder.glob("*.jsonl") if path.stem.isdigit()}
    if not found:
        raise ValueError(
            f"run={run}: {folder} holds no STEP.jsonl; train with trainer.rollout_data_dir={run / 'rollouts'}, or give the folder "
            "with rollouts=FOLDER"
        )
    return dict(sorted(found.items()))


def read_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """Rows of a dump; what cannot be read is skipped and said."""
    bad = 0
    for line in path.read_bytes().splitlines():
        try:
            row = parse(line)
        except DocumentError:
            row = None
        if isinstance(row, Mapping):
            yield row
        else:
            bad += 1
    if bad:
        logger.warning("%s: %d lines cannot be read and are left out", path, bad)


def analyse(run: Path, rollouts: Path | None, credit: str, output: Path, overwrite: bool) -> dict[str, Any]:
    """Read every step and write advantages.json, advantages.md and figures.

    Args:
        run: folder of the run.
        rollouts: of its dump, if it is not RUN/rollouts.
        credit: turn or trajectory.
        output: folder of the results.
        overwrite: replace the analysis of another run there.

    Raises:
        ValueError: no dump, no trained rollout in it, or an output folder that holds something else.
    """
    files = rollout_files(run, rollouts)
    steps = [entry for step, path in files.items() if (entry := step_entry(step, list(read_rows(path)), credit)) is not None]
    if not steps:
        raise ValueError(f"run={run}: no row of its {len(files)} dumped steps is a rollout with an advantage")
    Records(output, {"what": "advantages", "run": str(run), "credit": credit}, overwrite)
    results = {"what": "advantages", "run": str(run), "credit": credit, "steps": steps}
    start()
    figures = [save(_curves(steps), output / FIGURE), save(_histograms(steps), output / HEAT)]
    write_text(output / "advantages.md", _page(results, [path.name for path in figures]))
    write_text(output / "advantages.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


COLUMNS = ("mean", "deviation", "skew", "excess_kurtosis", "entropy")


def verdict(steps: Sequence[Mapping[str, Any]], credit: str) -> str:
    """What the distribution was at the first and the last step."""
    first, last = steps[0], steps[-1]
    unit = "turn" if credit == "turn" else "trajectory"
    flat, groups = (sum(step[key] for step in steps) for key in ("groups_without_spread", "groups"))
    lost = f"In {percent(flat / groups)} % of {groups} groups all rollouts had the same advantage. " if groups else ""
    return (
        f"One value per {unit}. {lost}From step {first['step']} to {last['step']}: share of zeros {percent(first['zero'])} to "
        f"{percent(last['zero'])} %, deviation {number(first['deviation'], 3)} to {number(last['deviation'], 3)}, entropy "
        f"{number(first['entropy'], 3)} to {number(last['entropy'], 3)} nats. A normal distribution has {number(NORMAL, 3)}, skew "
        "0 and excess kurtosis 0: that is what to read these against, and steps of few rollouts stray from it by chance."
    )


def _normal_entropy() -> float:
    """The entropy of a normal distribution in the same bins: the null line of the entropies."""
    edges = [-math.inf, *(LOWEST + (HIGHEST - LOWEST) * number / BINS for number in range(1, BINS)), math.inf]
    below = [0.5 * (1 + math.erf(edge / math.sqrt(2))) for edge in edges]
    return -sum((b - a) * math.log(b - a) for a, b in itertools.pairwise(below))


NORMAL = _normal_entropy()


def _page(results: Mapping[str, Any], figures: Sequence[str]) -> str:
    rows = [
        [str(step["step"]), str(step["values"]), *(number(step[key], 3) for key in COLUMNS), percent(step["zero"]),
         percent(step["positive"]), f"{step['groups_without_spread']} of {step['groups']}"]
        for step in results["steps"]
    ]  # fmt: skip
    header = ["step", "values", *(name.replace("_", " ") for name in COLUMNS), "zero %", "positive %", "groups without spread"]
    return page("Advantages", [verdict(results["steps"], results["credit"]), table(header, rows)], figures)


def _curves(steps: Sequence[Mapping[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    panels = ("deviation", "skew", "excess_kurtosis", "entropy", "zero", "positive")
    figure, axes = plt.subplots(2, 3, figsize=(11.0, 5.5), layout="constrained")
    for axis, key in zip(axes.flat, panels, strict=True):
        axis.plot([step["step"] for step in steps], [step[key] for step in steps], marker="o", markersize=3)
        null = {"skew": 0.0, "excess_kurtosis": 0.0, "entropy": NORMAL}.get(key)
        if null is not None:
            axis.axhline(null, color="#8a8a8a", linewidth=0.8, linestyle="--")
        axis.set_title(key.replace("_", " "), fontsize=9)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("training step")
    return figure


def _histograms(steps: Sequence[Mapping[str, Any]]) -> Any:
    """Standardised values over steps; a step without spread is empty."""
    import matplotlib.pyplot as plt

    grid = np.array(
        [np.zeros(BINS) if step["histogram"] is None else np.array(step["histogram"]) / step["values"] for step in steps]
    ).T
    figure, axis = plt.subplots(figsize=(8.0, 4.0), layout="constrained")
    image = axis.imshow(grid, aspect="auto", origin="lower", extent=(-0.5, len(steps) - 0.5, LOWEST, HIGHEST), cmap="viridis")
    shown = range(0, len(steps), max(1, len(steps) // 12))
    axis.set_xticks(list(shown), [str(steps[place]["step"]) for place in shown])
    axis.set_xlabel("training step")
    axis.set_ylabel("advantage, in standard deviations")
    figure.colorbar(image, ax=axis, label="share of values")
    return figure
