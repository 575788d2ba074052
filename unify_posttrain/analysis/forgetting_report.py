"""`forgetting`: read evaluations of runs, and write what was forgotten and recovered as data, a page and curves."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.analysis.forgetting import Curve, analyse
from unify_posttrain.analysis.plots import save, start
from unify_posttrain.analysis.records import Records
from unify_posttrain.analysis.sweeps import Sweep, answers, check_same_problems, find_column, open_sweep, scores
from unify_posttrain.analysis.tables import NONE, number, page, percent, table
from unify_posttrain.measures.intervals import t_interval
from unify_posttrain.measures.statistics import Bootstrap
from unify_posttrain.runs.files import write_text

FIGURE = "forgetting.png"


@dataclass(frozen=True)
class Forgetting:
    """What `forgetting` does.

    Attributes:
        seeds: per seed the evaluation of fine-tuning, and start -> evaluation of the RL run from there.
        evaluations: folder of evaluations by name.
        id, ood: benchmarks; None: by the ends of their names.
        select: half or none.
        end: last step of fine-tuning that counts; None: the last evaluated one.
        how: of intervals.
        output: folder of the results.
        overwrite: replace an analysis of other evaluations there.
        published: rows {benchmark, model, origin, peak, end, rl, id: [at the peak, at the end, after RL]}, in %.
    """

    seeds: tuple[tuple[str, Mapping[int, str]], ...]
    evaluations: Path
    id: str | None
    ood: str | None
    select: str
    end: int | None
    how: Bootstrap
    output: Path
    overwrite: bool
    published: tuple[Mapping[str, Any], ...] = ()


def report(forgetting: Forgetting) -> dict[str, Any]:
    """Read the evaluations and write forgetting.json, forgetting.md and the curves.

    Raises:
        ValueError: an evaluation that cannot be used, problems that differ, or an output folder that holds something else.
    """
    runs = [_seed(forgetting, sft, rl) for sft, rl in forgetting.seeds]
    runs = [{**run, "verdict": verdict(run)} for run in runs]
    seeds = [[sft, {str(begin): name for begin, name in rl.items()}] for sft, rl in forgetting.seeds]
    how = {"select": forgetting.select, "end": forgetting.end, "id": forgetting.id, "ood": forgetting.ood, **asdict(forgetting.how)}
    Records(forgetting.output, {"what": "forgetting", "seeds": seeds, **how}, forgetting.overwrite)
    results: dict[str, Any] = {
        "what": "forgetting",
        "select": forgetting.select,
        "confidence": forgetting.how.confidence,
        "seeds": runs,
        "over_seeds": over_seeds(runs, forgetting.how.confidence) if len(runs) > 1 else None,
        "published": [dict(row) for row in forgetting.published if row["benchmark"] in {run["ood"] for run in runs}],
    }
    start()
    figure = save(_draw(runs), forgetting.output / FIGURE)
    write_text(forgetting.output / "forgetting.md", _page(results, [figure.name]))
    write_text(forgetting.output / "forgetting.json", json.dumps(results, indent=1, allow_nan=False) + "\n")
    return results


def _seed(forgetting: Forgetting, sft_name: str, rl_names: Mapping[int, str]) -> dict[str, Any]:
    sft = open_sweep("sft", sft_name, forgetting.evaluations)
    rl = {begin: open_sweep("rl", name, forgetting.evaluations) for begin, name in rl_names.items()}
    sweeps = [sft, *rl.values()]
    ood = find_column("ood", forgetting.ood, "_ood", sweeps, required=True)
    inside = find_column("id", forgetting.id, "_id", sweeps, required=False)
    curves: dict[str, tuple[Curve, Curve]] = {}
    for column in filter(None, (ood, inside)):
        check_same_problems(sweeps, column)
        ends = {begin: scores(sweep, column, [sweep.last])[sweep.last] for begin, sweep in rl.items()}
        curves[column] = scores(sft, column), ends
    sft_id, rl_id = curves[inside] if inside else (None, None)
    found = analyse(*curves[str(ood)], forgetting.select, forgetting.how, forgetting.end, sft_id, rl_id)
    return {
        "sft": sft_name,
        "runs": {begin: sweep.name for begin, sweep in rl.items()},
        "ood": ood,
        "id_benchmark": inside,
        **found,
        "answers": _answers(str(ood), sft, rl),
    }


def _answers(ood: str, sft: Sweep, rl: Mapping[int, Sweep]) -> dict[str, dict[int, dict[str, float | None]]]:
    """How checkpoints of fine-tuning, and the ends of RL runs by their start, answered out of distribution."""
    found = {
        "sft": {step: answers(sft, ood, step) for step in sorted(sft.steps)},
        "rl": {begin: answers(sweep, ood, sweep.last) for begin, sweep in rl.items()},
    }
    return {name: {step: each for step, each in steps.items() if each is not None} for name, steps in found.items()}


def over_seeds(runs: Sequence[Mapping[str, Any]], confidence: float) -> dict[str, Any]:
    """t intervals over seeds of what every seed has."""

    def interval(values: Sequence[float | None]) -> dict[str, Any]:
        return asdict(t_interval(values, confidence))

    # Seeds have peaks at different steps, and start from different ones: what they share is the best start of each.
    healed = [run["rl"][run["best_start"]]["against_end"]["mean"] if run["best_start"] is not None else None for run in runs]
    return {
        "peak": interval([run["peak"] for run in runs]),
        "end": interval([run["end"] for run in runs]),
        "forgotten": interval([run["forgotten"]["mean"] for run in runs]),
        "rl_against_end": interval(healed),
        "recovery": interval([run["recovery"].get(run["best_start"]) for run in runs]),
    }


LABELS = {
    "half": "Peak and best start were chosen on one half of the problems; all numbers are of the other half.",
    "none": "**select: none**: the peak is the highest of all checkpoints on the problems that it is reported for, as the papers "
    "do it, so it is too high, and so is what was forgotten.",
}


def verdict(run: Mapping[str, Any]) -> list[str]:
    """Forgetting: yes or no. Healed: yes, no or not told apart. With intervals."""
    forgotten = run["forgotten"]
    said = [
        f"Out of distribution ({run['ood']}) {run['sft']} reached {percent(run['peak'])} % at step {run['peak_step']} and ended at "
        f"{percent(run['end'])} % (step {run['end_step']}): a loss of {_points(forgotten)} points.",
        f"**Forgetting: {'yes' if run['forgot'] else 'no'}.**"
        + ("" if run["forgot"] else " The paired interval does not exclude 0, so there is nothing to recover."),
    ]
    best = run["best_start"]
    if best is not None:
        entry = run["rl"][best]
        said.append(
            f"RL from step {best}, the best start, ended at {percent(entry['share']['mean'])} %: {_points(entry['against_end'])} "
            f"points against the end of fine-tuning."
        )
        if run["forgot"]:
            share = entry["recovery"]
            said.append(f"**Healed: {run['healed']}.** Recovered share of what was forgotten: {number(share, 2)}.")
        window = "no start has a gain" if run["window"] is None else f"starts {run['window'][0]} to {run['window'][-1]} have a gain"
        said.append(f"Window: {window}. This describes these runs; it is no test.")
    return said


def _points(difference: Mapping[str, Any]) -> str:
    ends = "" if difference["low"] is None else f" [{percent(difference['low'])}, {percent(difference['high'])}]"
    return f"{percent(difference['mean'])}{ends}"


def _page(results: Mapping[str, Any], figures: Sequence[str]) -> str:
    parts = [LABELS[results["select"]]]
    for run in results["seeds"]:
        count = run["problems"]["reported_on"]
        parts += [f"## {run['sft']}", *run["verdict"], _noise(count, run), _table(run)]
        parts += ["Answers out of distribution:", _answer_table(run)] if any(run["answers"].values()) else []
    if results["over_seeds"] is not None:
        rows = [
            [key.replace("_", " "), percent(value["mean"]), percent(value["half_width"]), str(value["n"])]
            for key, value in results["over_seeds"].items()
        ]
        parts += ["## Over seeds", table(["%", "mean", "±", "seeds"], rows)]
    if results["published"]:
        parts += ["## Published", _published(results["published"]), PUBLISHED_NOTE]
    return page("Forgetting and recovery", parts, figures)


PUBLISHED_NOTE = (
    "In %, on 234 hands or 48 routes, at the highest of all checkpoints: compare with `select: none`, and with the width of an "
    "interval."
)


def _published(rows: Sequence[Mapping[str, Any]]) -> str:
    """Published rows, and the share that came back in each."""
    return table(
        ["model", "origin", "OOD peak", "SFT end", "RL end", "recovery", "ID at peak, end, RL"],
        [
            [row["model"], row["origin"], *(number(row[key], 2) for key in ("peak", "end", "rl")),
             number((row["rl"] - row["end"]) / (row["peak"] - row["end"]), 2), ", ".join(number(each, 2) for each in row["id"])]
            for row in rows
        ],
    )  # fmt: skip


def _answer_table(run: Mapping[str, Any]) -> str:
    rows = []
    for name, title in (("sft", "SFT"), ("rl", "end of RL from")):
        for step, found in sorted(run["answers"][name].items()):
            shares = [percent(found[key]) for key in ("first_acc", "other_rule", "unreadable")]
            rows.append([f"{title} {step}", *shares, number(found["turns"], 2), number(found["loss"], 4)])
    head = [
        "",
        "first answer right %",
        "right under the other rule, % of turns",
        "unreadable, % of turns",
        "turns",
        "loss per token",
    ]
    return table(head, rows)


def _noise(count: int, run: Mapping[str, Any]) -> str:
    """How wide the interval of one share is on so many problems, so that nobody reads a step of noise as a change."""
    peak = run["curve"][run["peak_step"]]
    return f"On {count} problems a share like the peak's has an interval of {percent(peak['high'] - peak['low'])} points (Wilson)."


def _table(run: Mapping[str, Any]) -> str:
    inside = run.get("id", {"curve": {}, "rl": {}})
    rows = []
    for step in sorted({*run["curve"], *run["rl"]}):
        own = run["rl"].get(step)
        gain = None if own is None else own["gain"]
        rows.append([
            str(step), _cell(inside["curve"].get(step)), _cell(run["curve"].get(step)), _cell(inside["rl"].get(step)),
            _cell(None if own is None else own["share"]), NONE if gain is None else _points(gain),
            number(None if own is None else own["recovery"], 2),
        ])  # fmt: skip
    return table(["SFT step", "SFT ID %", "SFT OOD %", "RL from there ID %", "RL OOD %", "gain", "recovery"], rows)


def _cell(share: Mapping[str, Any] | None) -> str:
    return NONE if share is None else f"{percent(share['mean'])} [{percent(share['low'])}, {percent(share['high'])}]"


def _draw(runs: Sequence[Mapping[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(runs), figsize=(6.0 * len(runs), 4.2), layout="constrained", squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        inside = run.get("id", {"curve": {}, "rl": {}})
        for name, curve, ends, colour in (("OOD", run["curve"], {s: e["share"] for s, e in run["rl"].items()}, "#c0392b"),
                                          ("ID", inside["curve"], inside["rl"], "#2c6fbb")):  # fmt: skip
            _line(axis, curve, f"{name}, SFT", colour, "-")
            _line(axis, ends, f"{name}, end of RL from there", colour, ":")
        axis.axvline(run["peak_step"], color="#8a8a8a", linewidth=0.8, linestyle="--")
        axis.set_title(run["sft"], fontsize=9)
        axis.set_xlabel("step of fine-tuning")
        axis.set_ylabel("solved (%)")
        axis.set_ylim(-3, 103)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    return figure


def _line(axis: Any, curve: Mapping[int, Mapping[str, Any]], label: str, colour: str, style: str) -> None:
    if not curve:
        return
    steps = sorted(curve)
    axis.plot(steps, [100 * curve[step]["mean"] for step in steps], style, color=colour, marker="o", markersize=3.5, label=label)
    low, high = ([100 * curve[step][end] for step in steps] for end in ("low", "high"))
    axis.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
