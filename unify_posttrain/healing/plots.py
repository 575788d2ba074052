"""The figure: accuracy of fine-tuning over its steps, with the ends of the RL runs at the checkpoints that they started from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.healing.plan import Healing
from unify_posttrain.healing.results import over_seeds, rl_ends

FIGURE = "heals.png"
COLOURS = {"ood": "#c0392b", "id": "#2c6fbb"}
NAMES = {"ood": "out of distribution", "id": "in distribution"}
MARKERS = "osD^v<>PX*"
DPI = 130


def draw(healing: Healing, found: Mapping[str, Any], folder: Path) -> Path | None:
    """Left: the curves of fine-tuning, a thin line per seed and their mean. Right: the ends of RL by method and start."""
    if not found["sft"]:
        return None
    import matplotlib

    matplotlib.use("Agg")  # no display needed, and none opened
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12.0, 4.4), layout="constrained")
    _curves(healing, found, left)
    _ends(healing, found, right)
    path = folder / FIGURE
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    plt.close(figure)
    return path


def _curves(healing: Healing, found: Mapping[str, Any], axis: Any) -> None:
    steps = sorted(set.intersection(*(set(curve) for curve in found["sft"].values())))
    for key, colour in COLOURS.items():
        for curve in found["sft"].values():
            values = [curve[step][key] for step in steps]
            if None not in values:
                axis.plot(steps, [100 * value for value in values], color=colour, alpha=0.25, linewidth=0.8)
        means = [over_seeds(found, step, key, healing.confidence).mean for step in steps]
        if None not in means:
            axis.plot(steps, [100 * (mean or 0.0) for mean in means], color=colour, marker="o", markersize=3, label=NAMES[key])
    for starts in found["starts"].values():
        axis.axvline(starts["peak"], color="#8a8a8a", linewidth=0.8, linestyle="--")
    axis.set_xlabel("step of fine-tuning (dashed: the chosen peaks)")
    axis.set_ylabel("solved (%)")
    axis.set_ylim(-3, 103)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _ends(healing: Healing, found: Mapping[str, Any], axis: Any) -> None:
    axis.set_xticks(range(len(healing.starts)), [f"RL from {start}" for start in healing.starts])
    variants = list(found["variants"])
    for number, variant in enumerate(variants):
        offset = 0.0 if len(variants) == 1 else 0.6 * (number / (len(variants) - 1) - 0.5)
        ends = [rl_ends(found, variant, start, healing.confidence)["ood"] for start in healing.starts]
        points = [(place + offset, end) for place, end in enumerate(ends) if end.mean is not None]
        axis.errorbar(
            [x for x, _ in points], [100 * (end.mean or 0.0) for _, end in points],
            yerr=[100 * (end.half_width or 0.0) for _, end in points], fmt=MARKERS[number % len(MARKERS)], capsize=2, markersize=5,
            elinewidth=1.0, label=variant,
        )  # fmt: skip
    runs = [run for variant in found["variants"].values() for run in variant["seeds"]]
    for key, style in (("peak", "--"), ("end", ":")):
        if runs:
            mean = sum(run[key] for run in runs) / len(runs)
            axis.axhline(100 * mean, color=COLOURS["ood"], linestyle=style, linewidth=0.9, label=f"fine-tuning, {key}")
    axis.set_ylabel("out of distribution, solved (%)")
    axis.set_ylim(-3, 103)
    axis.grid(axis="y", alpha=0.3)
    if variants:
        axis.legend(fontsize=7)
