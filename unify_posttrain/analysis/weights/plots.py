"""Figures: angles and singular values over rank with their null lines, heat maps of layer × module, accuracy over the share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.analysis.plots import save, start
from unify_posttrain.analysis.weights.measures import mean_of
from unify_posttrain.analysis.weights.verdicts import columns_of

HEAT, RANKS, SHARES, DISTANCE = "heat.png", "ranks.png", "accuracy_over_top.png", "left_over_top.png"
NULL = "#8a8a8a"
CONTROL_STYLES = {"interpolate": "--", "drop": "-.", "random": ":"}


def draw(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Figures of angles or a spectrum."""
    start()
    return [save(_ranks(results), folder / RANKS), save(_heat(results), folder / HEAT)]


def _curves(results: Mapping[str, Any], label: str, key: str) -> list[float | None]:
    """A curve over all ranks, averaged over matrices."""
    curves = [entry["models"][label]["curve"][key] for entry in results["matrices"]]
    return [mean_of(list(values)) for values in zip(*curves, strict=True)]


def _ranks(results: Mapping[str, Any]) -> Any:
    import matplotlib.pyplot as plt

    angles = results["what"] == "angles"
    panels = {"left": ("left", "left_noise"), "right": ("right", "right_noise")} if angles else {"": ("tuned", "noise")}
    figure, axes = plt.subplots(1, len(panels), figsize=(5.5 * len(panels), 4.0), layout="constrained", squeeze=False)
    for axis, (side, (own, null)) in zip(axes[0], panels.items(), strict=True):
        for label in results["tuned"]:
            (line,) = axis.plot(*_points(_curves(results, label, own)), label=label)
            axis.plot(
                *_points(_curves(results, label, null)), color=line.get_color(), linestyle=":", label=f"{label}: noise of its norm"
            )
        if angles:
            axis.axhline(90, color=NULL, linewidth=0.8, linestyle="--", label="random vectors, about 90")
            axis.set_ylim(-2, 95)
        axis.set_xlabel("rank / number of ranks")
        axis.set_ylabel(f"angle of {side} vectors of equal rank (degrees)" if angles else "(s_tuned - s_base) / s_base")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def _points(values: Sequence[float | None]) -> tuple[list[float], list[float]]:
    known = [((number + 0.5) / len(values), value) for number, value in enumerate(values) if value is not None]
    return [x for x, _ in known], [y for _, y in known]


def _heat(results: Mapping[str, Any]) -> Any:
    """One map per tuned model, beside the map of its null line."""
    import matplotlib.pyplot as plt
    import numpy as np

    entries = results["matrices"]
    layers = sorted({-1 if entry["layer"] is None else entry["layer"] for entry in entries})
    modules = list(dict.fromkeys(entry["module"] for entry in entries))
    angles = results["what"] == "angles"
    labels = list(results["tuned"])
    size = (1.4 + 0.55 * len(modules), 1.6 + 0.28 * len(layers))
    figure, axes = plt.subplots(
        len(labels), 2, figsize=(2.4 * size[0], size[1] * len(labels) + 0.8), layout="constrained", squeeze=False
    )
    for row, label in zip(axes, labels, strict=True):
        maps = []
        for null in (False, True):
            grid = np.full((len(layers), len(modules)), np.nan)
            for entry in entries:
                value = _heat_value(entry["models"][label], angles, null)
                place = layers.index(-1 if entry["layer"] is None else entry["layer"]), modules.index(entry["module"])
                grid[place] = np.nan if value is None else value
            maps.append(grid)
        known = np.concatenate([grid[~np.isnan(grid)] for grid in maps])
        limits = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        for axis, grid, name in zip(row, maps, (label, f"{label}: noise of its norm"), strict=True):
            image = axis.imshow(grid, aspect="auto", vmin=limits[0], vmax=limits[1], cmap="viridis")
            axis.set_title(name, fontsize=8)
            axis.set_xticks(range(len(modules)), modules, rotation=60, ha="right", fontsize=6)
            axis.set_yticks(range(len(layers)), ["none" if each < 0 else each for each in layers], fontsize=6)
            axis.set_ylabel("layer")
        title = "mean principal angle, left (degrees)" if angles else "‖s_tuned - s_base‖ / ‖s_base‖"
        figure.colorbar(image, ax=list(row), label=title)
    return figure


def _heat_value(measured: Mapping[str, Any], angles: bool, null: bool) -> float | None:
    if angles:
        return measured["subspaces"][0]["left_noise" if null else "left"]["mean"] if measured["subspaces"] else None
    return measured["values"]["noise" if null else "tuned"]["overall"]


def draw_recovery(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Distance, and for every benchmark accuracy, over the restored share: modes as lines, controls broken."""
    start()
    rows = results["rows"]
    figures = [save(_over_share(rows, [("left", lambda row: row["left"])]), folder / DISTANCE)]
    columns = columns_of(results)
    if columns:
        panels = [(f"{column} (%)", _reader(column)) for column in columns]
        figures.append(save(_over_share(rows, panels), folder / SHARES))
    return figures


def _reader(column: str) -> Any:
    def value(row: Mapping[str, Any]) -> float | None:
        found = row.get("accuracy", {}).get(column)
        return None if found is None else 100 * found["mean"]

    return value


def _over_share(rows: Sequence[Mapping[str, Any]], panels: Sequence[tuple[str, Any]]) -> Any:
    """A panel per quantity: (its name, row -> value)."""
    import matplotlib.pyplot as plt

    tops = list(dict.fromkeys(row["top"] for row in rows if "top" in row))
    figure, axes = plt.subplots(1, len(panels), figsize=(5.0 * len(panels), 4.0), layout="constrained", squeeze=False)
    series = list(dict.fromkeys((row["kind"], row["mode"]) for row in rows if "top" in row))
    for axis, (title, value) in zip(axes[0], panels, strict=True):
        for kind, mode in series:
            own = {row["top"]: value(row) for row in rows if row["kind"] == kind and row.get("mode") == mode}
            points = [(place, own[top]) for place, top in enumerate(tops) if own.get(top) is not None]
            name = kind if kind == mode else f"{kind} indices, {mode}"
            axis.plot(
                [x for x, _ in points],
                [y for _, y in points],
                CONTROL_STYLES.get(kind, "-"),
                marker="o",
                markersize=3.5,
                label=name,
            )
        for row in rows:
            if row["kind"] in ("base", "tuned") and value(row) is not None:
                axis.axhline(value(row), color=NULL, linewidth=0.8, linestyle="-" if row["kind"] == "tuned" else "--")
                axis.annotate(row["kind"], (0, value(row)), fontsize=7, color=NULL)
        axis.set_xticks(range(len(tops)), [str(top) for top in tops])
        axis.set_xlabel("restored: share (fraction) or number of leading indices")
        axis.set_ylabel(title)
        if title.endswith("(%)"):
            axis.set_ylim(-3, 103)  # one problem more or less is not to look like a change
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
