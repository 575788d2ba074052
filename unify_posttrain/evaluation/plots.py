"""Figures of an evaluation: accuracies beside published numbers, and accuracy over the steps of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.evaluation.tables import column_title, columns_of

ACCURACY, CURVE = "accuracy.png", "curve.png"
DPI = 130
LOWEST, HIGHEST = -3, 103  # of the accuracy axis, in %
SPREAD = 0.6  # share of a column's width that its points take
PUBLISHED = "#8a8a8a"
MARKERS = "sD^v<>PX*h"


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Draw what there is data for; returns the files."""
    if not any(entry["accuracy"] is not None for model in results["models"] for entry in model["sources"]):
        return []
    import matplotlib

    matplotlib.use("Agg")  # no display needed, and none opened
    matplotlib.rcParams["text.parse_math"] = False  # names come from data: a $ in one is a dollar
    steps = [model["step"] for model in results["models"]]
    if len(steps) > 1 and None not in steps:
        return [_save(_curve(results), folder / CURVE)]
    return [_save(_accuracies(results), folder / ACCURACY)]


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path


def _accuracies(results: Mapping[str, Any]) -> Any:
    """One column per source: a point with its interval per model, and grey marks of published numbers."""
    import matplotlib.pyplot as plt

    columns = columns_of(results)
    published = [row for row in results["published"] if row["scores"]]
    shown = len(results["models"]) + len(published)
    figure, axis = plt.subplots(figsize=(max(5.0, 1.3 * len(columns) + 2.5), 4.2), layout="constrained")
    marks: list[Any] = []
    for number, model in enumerate(results["models"]):
        entries = {(entry["benchmark"], entry["source"]): entry["accuracy"] for entry in model["sources"]}
        points = [(x, entries[column]) for x, column in enumerate(columns) if entries.get(column) is not None]
        bar = axis.errorbar(
            [x + _offset(number, shown) for x, _ in points],
            [100 * accuracy["mean"] for _, accuracy in points],
            yerr=_bars([accuracy for _, accuracy in points]),
            fmt="o", capsize=2, markersize=5, elinewidth=1.0, label=model["label"],
        )  # fmt: skip
        marks.append(bar)
    single = [benchmark for benchmark, _ in columns]
    for number, row in enumerate(published, start=len(results["models"])):
        points = [(x, row["scores"][name]) for x, name in enumerate(single) if single.count(name) == 1 and name in row["scores"]]
        marks += axis.plot(
            [x + _offset(number, shown) for x, _ in points],
            [score for _, score in points],
            MARKERS[number % len(MARKERS)], linestyle="none", color=PUBLISHED, markersize=4,
            label=f"{row['model']}, {row['base']} ({row['origin']})",
        )  # fmt: skip
    axis.set_xticks(range(len(columns)), [column_title(column, columns) for column in columns], rotation=20, ha="right")
    axis.set_ylim(LOWEST, HIGHEST)
    axis.set_ylabel("accuracy (%)")
    axis.grid(axis="y", alpha=0.3)
    axis.legend(handles=marks, fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _offset(number: int, shown: int) -> float:
    return 0.0 if shown == 1 else SPREAD * (number / (shown - 1) - 0.5)


def _bars(accuracies: list[Mapping[str, Any]]) -> list[list[float]]:
    """Distances from the mean to the ends of the intervals; none where there is no interval."""
    low = [100 * (each["mean"] - each["low"]) if each["low"] is not None else 0.0 for each in accuracies]
    high = [100 * (each["high"] - each["mean"]) if each["high"] is not None else 0.0 for each in accuracies]
    # A percentile interval of few problems may leave its own mean out by a rounding error; matplotlib refuses negative bars.
    return [[max(0.0, value) for value in low], [max(0.0, value) for value in high]]


def _curve(results: Mapping[str, Any]) -> Any:
    """Accuracy over training steps, a line with its interval per source."""
    import matplotlib.pyplot as plt

    columns = columns_of(results)
    figure, axis = plt.subplots(figsize=(7.0, 4.2), layout="constrained")
    for column in columns:
        points = [
            (model["step"], entry["accuracy"])
            for model in results["models"]
            for entry in model["sources"]
            if (entry["benchmark"], entry["source"]) == column and entry["accuracy"] is not None
        ]
        steps, means = [step for step, _ in points], [100 * accuracy["mean"] for _, accuracy in points]
        below, above = _bars([accuracy for _, accuracy in points])
        (line,) = axis.plot(steps, means, marker="o", markersize=3.5, label=column_title(column, columns))
        low = [mean - bar for mean, bar in zip(means, below, strict=True)]
        high = [mean + bar for mean, bar in zip(means, above, strict=True)]
        axis.fill_between(steps, low, high, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.set_ylim(LOWEST, HIGHEST)
    axis.set_xlabel("training step")
    axis.set_ylabel("accuracy (%)")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
