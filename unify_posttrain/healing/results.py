"""What the steps have left behind, as plain data: curves of fine-tuning, ends of RL with what was forgotten and healed, weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.analysis.sweeps import Sweep, answers, open_sweep
from unify_posttrain.healing.plan import Chosen, Healing, sft_name, variant_name
from unify_posttrain.measures.intervals import Interval, t_interval
from unify_posttrain.untrusted.documents import DocumentError, read_object

ANSWERS = ("other_rule", "unreadable", "turns", "loss")


def collect(healing: Healing, chosen: Chosen, missing: Collection[str] = ()) -> dict[str, Any]:
    """Everything that the page says.

    Args:
        healing: the study.
        chosen: starts by seed.
        missing: names of steps that have not finished: what an analysis of other settings has left does not count.

    Returns:
        starts: seed -> start -> step; sft: seed -> step -> {id, ood, other_rule, unreadable, turns, loss, id_loss}, shares of all
        hands; variants: name -> content of its forgetting.json, reported on the other half; recovery, angles: of the first seed,
        where they are there.
    """
    evaluations = healing.folder / "evaluations"
    sft = {seed: _curve(open_sweep("sft", sft_name(seed), evaluations), healing.id, healing.ood) for seed in chosen}
    analyses = healing.folder / "analyses"
    names = [variant_name(method, kl) for method, kl in healing.variants]
    steps = {name: f"forgetting-{name}" for name in names if f"forgetting-{name}" not in missing}
    variants = {name: found for name, step in steps.items() if (found := _read(analyses / step / "forgetting.json")) is not None}
    first = next(iter(chosen), None)
    weights = {what: f"{what}-{first}" for what in ("recovery", "angles")}
    return {
        "starts": {seed: dict(starts) for seed, starts in chosen.items()},
        "sft": sft,
        "variants": variants,
        **{what: None if step in missing else _read(analyses / step / f"{what}.json") for what, step in weights.items()},
    }


def _curve(sweep: Sweep, inside: str, ood: str) -> dict[int, dict[str, float | None]]:
    found = {}
    for step in sorted(sweep.steps):
        said, id_said = answers(sweep, ood, step) or {}, answers(sweep, inside, step) or {}
        shares = {key: _mean(sweep.entries.get((step, name))) for key, name in (("id", inside), ("ood", ood))}
        found[step] = {**shares, **{key: said.get(key) for key in ANSWERS}, "id_loss": id_said.get("loss")}
    return found


def _mean(entry: Mapping[str, Any] | None) -> float | None:
    return None if entry is None or entry.get("accuracy") is None else float(entry["accuracy"]["mean"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return read_object(path) if path.is_file() else None
    except (DocumentError, ValueError):
        return None


def over_seeds(found: Mapping[str, Any], step: int, key: str, confidence: float) -> Interval:
    """A number of a checkpoint of fine-tuning, over the seeds."""
    return t_interval([curve.get(step, {}).get(key) for curve in found["sft"].values()], confidence)


def rl_ends(found: Mapping[str, Any], variant: str, start: str, confidence: float) -> dict[str, Any]:
    """The ends of a method's RL runs from a start, over the seeds that have it.

    Returns:
        ood, against_end, gain, id, recovery: intervals over seeds, of the hands that the peak was not chosen on (`id`: all hands);
        healed: how many seeds are `yes`, `no` and `not told apart`; `nothing forgotten` where there was nothing to heal.
    """
    numbers: dict[str, list[float | None]] = {key: [] for key in ("ood", "against_end", "gain", "id", "recovery")}
    healed: dict[str, int] = {}
    for run, starts in zip(found["variants"][variant]["seeds"], found["starts"].values(), strict=True):
        entry = run["rl"].get(str(starts[start]))
        if entry is None:
            continue
        numbers["ood"].append(entry["share"]["mean"])
        numbers["against_end"].append(entry["against_end"]["mean"])
        numbers["gain"].append(None if entry["gain"] is None else entry["gain"]["mean"])
        numbers["recovery"].append(entry["recovery"])
        numbers["id"].append(run.get("id", {}).get("rl", {}).get(str(starts[start]), {}).get("mean"))
        word = verdict_of(run, entry)
        healed[word] = healed.get(word, 0) + 1
    return {**{key: t_interval(values, confidence) for key, values in numbers.items()}, "healed": healed}


def verdict_of(run: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Whether an RL run healed what its fine-tuning forgot: by the paired interval against the end of fine-tuning."""
    if not run["forgot"]:
        return "nothing forgotten"
    difference = entry["against_end"]
    if difference["low"] is None or difference["low"] <= 0 <= difference["high"]:
        return "not told apart"
    return "yes" if difference["low"] > 0 else "no"
