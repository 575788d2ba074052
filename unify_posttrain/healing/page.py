"""heals.md: what was asked, what was run, what came out, and what of it agrees with the paper. Every number is read from files."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unify_posttrain.analysis.forgetting_report import LABELS
from unify_posttrain.analysis.tables import NONE, number, page, percent, table
from unify_posttrain.analysis.weights.verdicts import columns_of, recovery_verdict
from unify_posttrain.analysis.weights.verdicts import verdict as angle_verdict
from unify_posttrain.healing.plan import Chosen, Healing, sft_name
from unify_posttrain.healing.plots import draw
from unify_posttrain.healing.records import Done
from unify_posttrain.healing.results import collect, over_seeds, rl_ends, verdict_of
from unify_posttrain.measures.intervals import Interval
from unify_posttrain.runs.files import write_text
from unify_posttrain.study.grid import as_overrides
from unify_posttrain.study.tables import duration
from unify_posttrain.study.tables import percent as interval

logger = logging.getLogger(__name__)

PAGE, DATA = "heals.md", "heals.json"
ROWS = 12  # of the curve of fine-tuning


def write_page(healing: Healing, chosen: Chosen, done: Mapping[str, Done], missing: Sequence[str]) -> None:
    """Write heals.md, heals.json and the figure into the folder; and copies to `page`, if nothing is missing.

    Args:
        healing: the study.
        chosen: starts by seed.
        done: records by name.
        missing: names of steps that have not finished.
    """
    found = collect(healing, chosen, missing)
    figure = draw(healing, found, healing.folder)
    text = markdown(healing, found, done, missing, [] if figure is None else [figure.name])
    write_text(healing.folder / PAGE, text)
    write_text(healing.folder / DATA, json.dumps({**found, "missing": list(missing)}, indent=1, allow_nan=False) + "\n")
    if healing.page is None:
        return
    if missing or figure is None:
        logger.warning("page=%s is not written: %d steps have not finished", healing.page, len(missing))
        return
    images = healing.page.parent / "images"
    write_text(healing.page, text.replace(f"({figure.name})", f"({images.name}/{figure.name})"))
    images.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(figure, images / figure.name)


def markdown(
    healing: Healing, found: Mapping[str, Any], done: Mapping[str, Done], missing: Sequence[str], figures: Sequence[str]
) -> str:
    """The content of heals.md."""
    parts = [INTRODUCTION, *_recipe(healing, done)]
    if missing:
        parts.append(f"**{len(missing)} steps have not finished**: {', '.join(missing[:8])}{' …' if len(missing) > 8 else ''}.")
    if found["sft"]:
        parts += ["## Fine-tuning", _starts(found), _curve(healing, found), CURVE]
    if found["variants"]:
        parts += ["## Reinforcement", LABELS[healing.select], _ends(healing, found), ENDS, *_seeds(found)]
    parts += _weights(found)
    if found["variants"]:
        parts += ["## Beside the paper", _claims(healing, found)]
    return page("Does reinforcement heal what fine-tuning forgot?", [*parts, CAVEATS], figures)


INTRODUCTION = (
    "This page is made by `python -m unify_posttrain.healing`, which `exp_scripts/cpu_heals.sh` starts. It repeats the experiment "
    'of "RL Heals OOD Forgetting in SFT" ([2509.12235](https://arxiv.org/abs/2509.12235)) with a tiny model: fine-tune on one rule '
    "of general points, watch the other rule, reinforce on the first rule, look at the other one again. Results are reported as "
    "found."
)
CURVE = (
    "Means over seeds, of all test hands. *Other rule*: turns whose formula is right under the rule of fine-tuning. *Unreadable*: "
    "turns without a formula. *Loss*: of the worked answers, per token, in nats."
)
ENDS = (
    "± is a t interval over seeds. *Against the end*: end of RL minus end of fine-tuning. *Gain*: minus fine-tuning at the start. "
    "*Healed* counts seeds, each by its paired interval over hands."
)
CAVEATS = (
    "The model has half a million weights, hands have three cards, and answers are characters. The base model has seen hands under "
    "both rules, the test hands excepted. What holds here need not hold for large models, and the other way round."
)


def _recipe(healing: Healing, done: Mapping[str, Done]) -> Iterator[str]:
    """What all runs share, what differs, and what it took."""
    rows = [[kind, " ".join(f"`{each}`" for each in as_overrides(node))] for kind, node in (
        ("all trainings", healing.common), ("fine-tuning", healing.sft), ("every RL run", healing.rl))]  # fmt: skip
    rows += [[name, " ".join(f"`{each}`" for each in overrides)] for name, overrides in healing.methods.items()]
    coefficients = ", ".join(f"{each:g}" for each in healing.kl)
    seeds = ", ".join(map(str, healing.seeds))
    yield f"Seeds {seeds}. RL starts at {', '.join(healing.starts)}; coefficients of its KL term: {coefficients}."
    yield table(["", "settings"], rows)
    seconds = sum(each.seconds for each in done.values())
    sources = len({each.source for each in done.values()})
    if done:
        yield (
            f"{len(done)} steps took {duration(seconds)} in all, {healing.parallel} side by side, with "
            f"{'one version' if sources == 1 else f'{sources} versions'} of the code."
        )


def _starts(found: Mapping[str, Any]) -> str:
    said = [f"seed {seed}: peak at step {each['peak']}, end at step {each['end']}" for seed, each in found["starts"].items()]
    return f"Chosen starts: {'; '.join(said)}."


def _curve(healing: Healing, found: Mapping[str, Any]) -> str:
    steps = sorted(set.intersection(*(set(curve) for curve in found["sft"].values())))
    every = max(1, -(-len(steps) // ROWS))
    shown = sorted({*steps[::every], *(step for each in found["starts"].values() for step in each.values())} & set(steps))
    rows = []
    for step in shown:
        cells = {
            key: over_seeds(found, step, key, healing.confidence)
            for key in ("id", "ood", "other_rule", "unreadable", "turns", "loss", "id_loss")
        }
        shares = [interval(cells[key]) for key in ("id", "ood", "other_rule", "unreadable")]
        rows.append([str(step), *shares, _plain(cells["turns"], 2), _plain(cells["id_loss"], 4), _plain(cells["loss"], 4)])
    return table(["step", "ID %", "OOD %", "other rule %", "unreadable %", "turns", "ID loss", "OOD loss"], rows)


def _plain(value: Interval, digits: int) -> str:
    return NONE if value.mean is None else f"{value.mean:.{digits}f}"


def _ends(healing: Healing, found: Mapping[str, Any]) -> str:
    rows = []
    for variant in found["variants"]:
        for start in healing.starts:
            end = rl_ends(found, variant, start, healing.confidence)
            healed = ", ".join(f"{word} {count}" for word, count in sorted(end["healed"].items()))
            recovery = _plain(end["recovery"], 2)
            cells = [interval(end["id"]), interval(end["ood"]), interval(end["against_end"], "+"), interval(end["gain"], "+")]
            rows.append([variant, start, *cells, recovery, healed or NONE])
    return table(["method", "start", "ID %", "OOD %", "against the end", "gain", "recovery", "healed"], rows)


def _seeds(found: Mapping[str, Any]) -> Iterator[str]:
    """What was forgotten, seed by seed: the same for all methods, since they share the fine-tuning run."""
    runs = next(iter(found["variants"].values()))["seeds"]
    rows = []
    for run in runs:
        lost = run["forgotten"]
        ends = NONE if lost["low"] is None else f"{percent(lost['low'])} to {percent(lost['high'])}"
        rows.append([run["sft"], str(run["peak_step"]), percent(run["peak"]), percent(run["end"]), percent(lost["mean"]), ends,
                     "yes" if run["forgot"] else "no"])  # fmt: skip
    yield "What fine-tuning forgot, on the hands that its peak was not chosen on:"
    yield table(["run", "peak at step", "peak %", "end %", "forgotten, points", "interval", "forgetting"], rows)


def _weights(found: Mapping[str, Any]) -> Iterator[str]:
    """The peak against the end of the first seed."""
    recovery, angles = found["recovery"], found["angles"]
    if recovery is None and angles is None:
        return
    yield "## In the weights"
    yield f"Base: the peak of {sft_name(next(iter(found['starts'])))}; tuned: its end. One seed, one pair of checkpoints."
    if recovery is not None:
        columns = columns_of(recovery)
        rows = [
            [
                row["label"],
                row["kind"],
                number(row["left"], 2),
                *(_share(row.get("accuracy", {}).get(column)) for column in columns),
            ]
            for row in recovery["rows"]
        ]
        yield table(["model", "kind", "left", *(column.rpartition(": ")[2] for column in columns)], rows)
        yield "*left* is the distance to the base that is left: 0 is the base, 1 as far as the tuned model."
        yield "\n".join(f"- {sentence}" for sentence in recovery_verdict(recovery))
    if angles is not None:
        yield "\n".join(f"- {sentence}" for sentence in angle_verdict(angles))


def _share(accuracy: Mapping[str, Any] | None) -> str:
    return NONE if accuracy is None else percent(accuracy["mean"])


def _claims(healing: Healing, found: Mapping[str, Any]) -> str:
    """The paper's claims, each beside the numbers that speak to it."""
    answers = {
        "forgetting": _on_forgetting(found),
        "healing": _on_healing(found),
        "window": _on_window(healing, found),
        "loss": _on_loss(healing, found),
        "directions": "See the table of restorations and its controls." if found["recovery"] is not None else "Not measured.",
    }
    return table(["claim", "here"], [[text, answers.get(name, NONE)] for name, text in healing.claims.items()])


def _on_forgetting(found: Mapping[str, Any]) -> str:
    runs = next(iter(found["variants"].values()))["seeds"]
    forgot = sum(run["forgot"] for run in runs)
    return f"OOD forgotten in {forgot} of {len(runs)} seeds (the paired interval of peak minus end is above 0)."


def _on_healing(found: Mapping[str, Any]) -> str:
    words: dict[str, int] = {}
    for variant in found["variants"].values():
        for run, starts in zip(variant["seeds"], found["starts"].values(), strict=True):
            entry = run["rl"].get(str(starts["end"]))
            if entry is not None:
                word = verdict_of(run, entry)
                words[word] = words.get(word, 0) + 1
    said = ", ".join(f"{word} {count}" for word, count in sorted(words.items()))
    return f"RL from the end of fine-tuning, over methods and seeds: {said or 'not run'}."


def _on_window(healing: Healing, found: Mapping[str, Any]) -> str:
    said = []
    for start in (each for each in ("peak", "base") if each in healing.starts and "end" in healing.starts):
        pairs = []
        for variant in found["variants"].values():
            for run, starts in zip(variant["seeds"], found["starts"].values(), strict=True):
                first, second = (run["rl"].get(str(starts[each])) for each in ("end", start))
                if first is not None and second is not None and starts["end"] != starts[start]:
                    pairs.append(first["share"]["mean"] >= second["share"]["mean"])
        said.append(
            f"RL from the end reaches at least the OOD accuracy of RL from the {start} in {sum(pairs)} of {len(pairs)} runs"
        )
    return f"{'; '.join(said)}." if said else "Not run."


def _on_loss(healing: Healing, found: Mapping[str, Any]) -> str:
    changes = []
    for seed, curve in found["sft"].items():
        first, last = (curve[found["starts"][seed][start]]["loss"] for start in ("peak", "end"))
        if first is not None and last is not None:
            changes.append((first, last))
    if not changes:
        return "Not measured."
    rose = sum(last > first for first, last in changes)
    means = [sum(values) / len(changes) for values in zip(*changes, strict=True)]
    return f"From peak to end the OOD loss rose in {rose} of {len(changes)} seeds, {means[0]:.4f} to {means[1]:.4f} on average."
