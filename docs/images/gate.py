"""Draw the gate at work: what prompts were trained on, step by step, and how many of their rollouts were solved.

python docs/images/gate.py                                              # gate.svg, from the table in README.md
python docs/images/gate.py outputs/runs/quickstart-hpt --output my.svg   # from a run's gate.jsonl
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import yaml

HERE = Path(__file__).resolve().parent
README = HERE.parents[1] / "README.md"
ROW = re.compile(r"^│ (\d+)-(\d+) +│ +(\d+)% │ +(\d+)% │ +(\d+)% │$", re.MULTILINE)
DEMONSTRATION, ROLLOUTS, SOLVED, TEXT = "#d98b4a", "#5b8db8", "#1f1f1f", "#444444"


class Span(NamedTuple):
    """Steps `first` to `last`; shares in %: prompts trained on a demonstration, on their rollouts; solved rollouts."""

    first: int
    last: int
    demonstration: float
    rollouts: float
    solved: float


def spans_of_readme(text: str) -> list[Span]:
    return [Span(*(int(number) for number in row)) for row in ROW.findall(text)]


def spans_of_run(folder: Path) -> list[Span]:
    """One span per step. A line of gate.jsonl: {"step": 3, "groups": [[row, solved rollouts, zone], ...]}."""
    size = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))["actor_rollout_ref"]["rollout"]["n"]
    spans = {}
    for line in (folder / "gate.jsonl").read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        zones = [zone for _, _, zone in entry["groups"]]
        demonstration, rollouts = (sum(zone in wanted for zone in zones) for wanted in (("sft", "off"), ("rl",)))
        solved = sum(successes for _, successes, _ in entry["groups"]) / (size * len(zones))
        trained = max(1, demonstration + rollouts)
        step = entry["step"]
        spans[step] = Span(step, step, 100 * demonstration / trained, 100 * rollouts / trained, 100 * solved)
    return [spans[step] for step in sorted(spans)]


def draw(spans: list[Span], output: Path) -> None:
    plt.rcParams.update(
        {"svg.fonttype": "none", "svg.hashsalt": "gate", "font.family": "sans-serif", "font.size": 10, "text.color": TEXT,
         "axes.labelcolor": TEXT, "xtick.color": TEXT, "ytick.color": TEXT}
    )  # fmt: skip
    figure, axes = plt.subplots(figsize=(7.2, 2.7), layout="constrained")
    figure.patch.set_facecolor("white")
    left = [span.first - 0.5 for span in spans]
    width = [span.last - span.first + 1 for span in spans]
    style = {"align": "edge", "edgecolor": "white", "linewidth": 1.5 if len(spans) < 20 else 0}
    below = [span.demonstration for span in spans]
    axes.bar(left, below, width, color=DEMONSTRATION, label="prompts trained on a demonstration", **style)
    axes.bar(left, [span.rollouts for span in spans], width, bottom=below, color=ROLLOUTS, label="on their rollouts", **style)
    middle = [(span.first + span.last) / 2 for span in spans]
    axes.plot(middle, [span.solved for span in spans], color=SOLVED, marker="o" if len(spans) < 20 else "", label="rollouts solved")
    axes.set(xlabel="training step", ylabel="% of prompts, of rollouts", ylim=(0, 100), xlim=(left[0], left[-1] + width[-1]))
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(output, format="svg", metadata={"Date": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="folder of a run; without one, the table in README.md")
    parser.add_argument("--output", type=Path, default=HERE / "gate.svg")
    given = parser.parse_args()
    draw(spans_of_run(given.run) if given.run else spans_of_readme(README.read_text(encoding="utf-8")), given.output)


if __name__ == "__main__":
    main()
