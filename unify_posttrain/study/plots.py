"""Figures of a study: one panel per algorithm, since as many lines in one panel cannot be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.study.grid import Grid
from unify_posttrain.study.summary import Row, TaskSummary

OWN, BASELINE, OTHERS = "#0b5fa5", "#c8502d", "#d5d5d5"
PANELS_PER_LINE = 5
MOST_NAMES = 26  # that fit into a column of the second figure
NAMES_WIDTH = 0.36  # of a column of names, and SIDE_STEP between points of equal use, as shares of the greatest use
SIDE_STEP = 0.016
ERROR_BAR = "#9db8d2"
PANEL_INCHES = (2.5, 2.0)
DPI = 130
LOWEST, HIGHEST = -3, 103  # of the accuracy axis, in %


def draw_task(grid: Grid, task: TaskSummary, folder: Path) -> list[Path]:
    """Draw the figures of one task; those without any data are left out. Returns the files."""
    import matplotlib

    matplotlib.use("Agg")  # no display needed, and none opened
    matplotlib.rcParams["text.parse_math"] = False  # names come from data: a $ in one is a dollar
    files = []
    rows = [row for row in task.rows if any(row.curves.values())]
    if rows:
        files.append(_save(_curves(grid, task.task, rows), folder / f"{task.task}_accuracy.png"))
    rows = [row for row in task.rows if row.demonstrations is not None and row.after[grid.splits[0]].mean is not None]
    if rows:
        files.append(_save(_against_demonstrations(grid, task.task, rows), folder / f"{task.task}_demonstrations.png"))
    return files


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, bbox_inches="tight")
    plt.close(figure)
    return path


def _curves(grid: Grid, task: str, rows: Sequence[Row]) -> Any:
    """Accuracy over steps: mean of an algorithm's seeds with their range, the baseline's mean, and all others in grey."""
    import matplotlib.pyplot as plt

    columns = min(PANELS_PER_LINE, len(rows))
    lines = -(-len(rows) // columns)
    figure, axes = plt.subplots(
        lines, columns, sharex=True, sharey=True, squeeze=False, layout="constrained",
        figsize=(max(5.0, columns * PANEL_INCHES[0]), lines * PANEL_INCHES[1] + 0.9),
    )  # fmt: skip
    means = {row.algorithm: _band(row.curves) for row in rows}
    for axis, row in zip(axes.flat, rows, strict=False):
        for other, (steps, middle, _low, _high) in means.items():
            if other != row.algorithm:
                axis.plot(steps, middle, color=OTHERS, linewidth=0.7, zorder=1)
        if grid.baseline in means and row.algorithm != grid.baseline:
            steps, middle, *_ = means[grid.baseline]
            axis.plot(steps, middle, color=BASELINE, linewidth=1.2, linestyle="--", zorder=2)
        steps, middle, low, high = means[row.algorithm]
        color = _color(grid, row)
        axis.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0, zorder=3)
        axis.plot(steps, middle, color=color, linewidth=1.8, marker="o", markersize=2.5, zorder=4)
        axis.set_title(f"{row.algorithm} (n={len(row.seeds)})", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
        axis.set_ylim(LOWEST, HIGHEST)
    for axis in axes.flat[len(rows) :]:
        axis.set_axis_off()
    for column in range(columns):  # the lowest panel that is used, also in an incomplete last line
        last = max(line for line in range(lines) if line * columns + column < len(rows))
        axes[last][column].tick_params(labelbottom=True)
    figure.supxlabel("step", fontsize=10)
    figure.supylabel(f"accuracy on {grid.splits[0]} (%)", fontsize=10)
    baseline = f"; dashed: {grid.baseline}" if grid.baseline in means else ""
    figure.suptitle(f"{task}: mean and range over n seeds, best first{baseline}; grey: the others", fontsize=10)
    return figure


def _band(curves: dict[int, dict[int, float]]) -> tuple[list[int], list[float], list[float], list[float]]:
    """Steps, and mean, least and greatest accuracy in % of the seeds that have the step."""
    steps = sorted({step for curve in curves.values() for step in curve})
    values = [[100 * curve[step] for curve in curves.values() if step in curve] for step in steps]
    return steps, [sum(each) / len(each) for each in values], [min(each) for each in values], [max(each) for each in values]


def _against_demonstrations(grid: Grid, task: str, rows: Sequence[Row]) -> Any:
    """Final accuracy against demonstrations used. Many methods use none, or one per prompt: points of equal use are drawn side
    by side, and names stand in a column left or right of all points."""
    import matplotlib.pyplot as plt

    split = grid.splits[0]
    figure, axis = plt.subplots(figsize=(9.0, 5.6), layout="constrained")
    widest = max(row.demonstrations or 0.0 for row in rows) or 1.0
    points = [(row, 100 * (row.after[split].mean or 0.0)) for row in rows]
    columns = _side_by_side([row.demonstrations or 0.0 for row in rows], step=SIDE_STEP * widest)
    for (row, y), x in zip(points, columns, strict=True):
        half_width = row.after[split].half_width
        bar = None if half_width is None else 100 * half_width
        axis.errorbar(x, y, yerr=bar, fmt="o", color=_color(grid, row), markersize=5, elinewidth=1.0, capsize=2, ecolor=ERROR_BAR)
    axis.set_ylim(LOWEST, HIGHEST)
    axis.set_xlim(-NAMES_WIDTH * widest, (1 + NAMES_WIDTH) * widest)
    axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= widest])
    for on_left in (True, False):
        place = -(NAMES_WIDTH - 0.02) * widest if on_left else (1 + NAMES_WIDTH - 0.02) * widest
        side = [(row, x, y) for (row, y), x in zip(points, columns, strict=True) if (x < widest / 2) == on_left]
        side.sort(key=lambda point: point[2])
        gap = (HIGHEST - LOWEST) / max(MOST_NAMES, len(side) + 1)
        heights = spread([y for *_, y in side], gap, low=LOWEST + gap / 2, high=HIGHEST - gap / 2)
        for (row, x, y), height in zip(side, heights, strict=True):
            axis.annotate(
                row.algorithm,
                xy=(x, y),
                xytext=(place, height),
                fontsize=8,
                va="center",
                ha="left" if on_left else "right",
                color=_color(grid, row),
                arrowprops={"arrowstyle": "-", "color": "#8a8a8a", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 3},
            )
    axis.grid(alpha=0.3)
    axis.set_xlabel("demonstrations trained on, mean over seeds (equal ones side by side)")
    axis.set_ylabel(f"accuracy on {split} at the end (%)")
    axis.set_title(f"{task}: mean over seeds, bars are {grid.confidence:.0%} intervals", fontsize=10)
    return figure


def _color(grid: Grid, row: Row) -> str:
    return BASELINE if row.algorithm == grid.baseline else OWN


def _side_by_side(values: Sequence[float], step: float) -> list[float]:
    """Each value moved so that those closer than `step` stand next to each other, about where they are."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    moved = spread([values[i] for i in order], step, low=min(values) - step * len(values), high=max(values) + step * len(values))
    placed = dict(zip(order, moved, strict=True))
    return [placed[i] for i in range(len(values))]


def spread(values: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move ascending `values` apart to at least `gap`, inside low..high if they fit, each group about its own mean."""
    groups: list[list[float]] = []
    for value in values:
        groups.append([value])
        while len(groups) > 1 and _top(groups[-2], gap, low, high) + gap > _bottom(groups[-1], gap, low, high):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, gap, low, high) + i * gap for group in groups for i in range(len(group))]


def _bottom(group: list[float], gap: float, low: float, high: float) -> float:
    height = gap * (len(group) - 1)
    return max(low, min(high - height, sum(group) / len(group) - height / 2))


def _top(group: list[float], gap: float, low: float, high: float) -> float:
    return _bottom(group, gap, low, high) + gap * (len(group) - 1)
