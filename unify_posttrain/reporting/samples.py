"""Texts for the page: rollouts beside demonstrations, and answers to the same validation prompts as training goes on.

Rollouts come from verl's dump (`trainer.rollout_data_dir`, fields of `unify_posttrain.trainer.dump`); a dump without these fields,
as plain verl writes it, is shown without colours. Validation samples are the files of `trainer.validation_data_dir`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.reporting.panels import ZONES
from unify_posttrain.reporting.pictures import Pictures
from unify_posttrain.reporting.run import SAMPLES, Run, entries, finite, is_step, step_files
from unify_posttrain.reporting.settings import Limits
from unify_posttrain.reporting.turns import SHOWN, UNTRAINED, cut_parts, images_of, parts_of, turns_of

ROLLOUTS = "rollouts"
VERL_FIELDS = ("input", "output", "gts", "score", "step", "request_id")
OWN_FIELDS = ("uid", "row_id", "row_kind", "segments", "advantage", "demonstration")
WEIGHT = "_weight"  # NAME_weight: a row's coefficient in the term NAME
MOST_FIELDS = 8  # further reward fields shown per row


def rollout_folder(run: Run) -> Path:
    """Where the run's dump is looked for: inside the run, whatever the configuration says of other places."""
    configured = run.setting("trainer.rollout_data_dir")
    return run.folder / (Path(str(configured)).name if configured else ROLLOUTS)


def evenly(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spaced, the last included and, if there is room for two, the first.

    >>> evenly([1, 2, 3, 4, 5], 3), evenly([1, 2], 1)
    ([1, 3, 5], [2])
    """
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)] if most > 1 else [items[-1]]


def rollout_steps(run: Run, limits: Limits, folder: Path | None = None, pictures: Pictures | None = None) -> list[dict[str, Any]]:
    """[{step, prompts: [{prompt, pictures, gold, zone, solved, rollouts, rows, demonstration}]}] of evenly spaced steps.

    Args:
        run: gives zone and successes of a prompt, by its row_id.
        limits: of steps, prompts, rows and characters.
        folder: of the dump; None: `rollout_folder`.
        pictures: of the run, the last steps' first if not all have room; None: none are shown.
    """
    files = step_files(rollout_folder(run) if folder is None else folder)
    steps = []
    for step in reversed(evenly(list(files), limits.rollout_steps)):
        gate = {row_id: (solved, zone) for row_id, solved, zone in run.gate.get(step, ())}
        groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for entry in entries(files[step], []):
            if entry.get("row_kind") != "padding":
                groups[str(entry.get("uid") or entry.get("input"))].append(entry)
        chosen = _every_zone([(_zone(rows, gate), rows) for rows in groups.values()], limits.rollout_prompts)
        steps.append({"step": step, "prompts": [_prompt(rows, gate, run, limits, pictures) for rows in chosen]})
    return [step for step in reversed(steps) if step["prompts"]]


def _gate(rows: list[dict[str, Any]], gate: Mapping[int, tuple[int, str]]) -> tuple[int | None, str | None]:
    row_id = rows[0].get("row_id")
    return gate.get(row_id, (None, None)) if is_step(row_id) else (None, None)


def _zone(rows: list[dict[str, Any]], gate: Mapping[int, tuple[int, str]]) -> str | None:
    zone = _gate(rows, gate)[1]
    return zone if zone in ZONES else None


def _prompt(
    rows: list[dict[str, Any]], gate: Mapping[int, tuple[int, str]], run: Run, limits: Limits, pictures: Pictures | None
) -> dict[str, Any]:
    first, solved = rows[0], _gate(rows, gate)[0]
    demonstrations = [row for row in rows if row.get("row_kind") == "demonstration"]
    sampled = [row for row in rows if row.get("row_kind") != "demonstration"]
    sampled.sort(key=lambda row: -(finite(row.get("score")) or 0.0))
    untrained = next((row for row in rows if isinstance(row.get("demonstration"), str)), None)
    shown = [_row(row, limits, pictures) for row in demonstrations[: limits.rollout_rows]]
    if not shown and untrained is not None:
        images = images_of(untrained.get("demonstration_images"), pictures)
        segments, _ = cut_parts([(UNTRAINED, untrained["demonstration"], None)], limits.characters, images)
        shown = [{"kind": "not trained", "segments": segments}]
    asked = next((row["pictures"] for row in rows if row.get("pictures")), None)
    return {
        "prompt": _cut(str(first.get("input", "")), limits)[0],
        "pictures": [] if pictures is None else pictures.of_prompt(asked),
        "gold": None if first.get("gts") is None else _cut(str(first["gts"]), limits)[0],
        "zone": _zone(rows, gate),
        "solved": solved,
        "of": run.setting("actor_rollout_ref.rollout.n"),
        "rollouts": [_row(row, limits, pictures) for row in evenly(sampled, limits.rollout_rows)],
        "demonstrations": shown,
        "hidden": max(0, len(sampled) - limits.rollout_rows),
    }


def _row(row: Mapping[str, Any], limits: Limits, pictures: Pictures | None) -> dict[str, Any]:
    """One dumped row: segments as `cut_parts` makes them, by turn if it is an episode."""
    turns = turns_of(row, limits.characters, pictures)
    segments = [] if turns else cut_parts(parts_of(row), limits.characters, images_of(row.get(SHOWN), pictures))[0]
    return {
        "kind": str(row.get("row_kind", "rollout")),
        "score": finite(row.get("score")),
        "advantage": finite(row.get("advantage")),
        "weights": {name: weight for name in row if name.endswith(WEIGHT) and (weight := finite(row[name])) is not None},
        "fields": _fields(row),
        "segments": segments,
        **({} if turns is None else {"turns": turns}),
    }


def _fields(row: Mapping[str, Any]) -> dict[str, str]:
    """What else the reward says of a row, as text."""
    found = {}
    for name, value in row.items():
        known = name in (*VERL_FIELDS, *OWN_FIELDS) or name.endswith(WEIGHT)
        if not known and isinstance(value, str | int | float) and len(found) < MOST_FIELDS:
            found[name] = f"{value:.6g}" if isinstance(value, float) else str(value)[:80]
    return found


def _every_zone(prompts: list[tuple[str | None, Any]], most: int) -> list[Any]:
    """A selection in which zones take turns, in the order of the batch within each."""
    queues: dict[str | None, list[Any]] = defaultdict(list)
    for zone, prompt in prompts:
        queues[zone].append(prompt)
    order = [queues[zone] for zone in ("sft", "rl", "off", "skipped", None) if zone in queues]
    turns = [prompt for turn in range(len(prompts)) for queue in order for prompt in queue[turn : turn + 1]]
    return turns[:most]


def validation_samples(run: Run, limits: Limits) -> dict[str, Any]:
    """The same prompts at several validations: {steps, prompts: [{prompt, gold, answers: [{score, text, cut} or null]}]}."""
    files = step_files(run.folder / SAMPLES)
    steps = evenly(list(files), limits.validation_steps)
    found: dict[tuple[str, int], list[dict[str, Any] | None]] = {}
    golds: dict[tuple[str, int], Any] = {}
    for position, step in enumerate(steps):
        seen: dict[str, int] = defaultdict(int)
        for entry in entries(files[step], []):
            prompt = str(entry.get("input", ""))
            key = (prompt, seen[prompt])  # several answers to one prompt are followed one by one
            seen[prompt] += 1
            text, cut = _cut(str(entry.get("output", "")), limits)
            golds.setdefault(key, entry.get("gts"))
            answers = found.setdefault(key, [None] * len(steps))
            answers[position] = {"score": finite(entry.get("score")), "text": text, "cut": cut}
    picked = _changed_first(found, limits.validation_prompts)
    prompts = [
        {
            "prompt": _cut(key[0], limits)[0],
            "gold": None if golds[key] is None else _cut(str(golds[key]), limits)[0],
            "answers": found[key],
        }
        for key in picked
    ]
    return {"steps": steps if prompts else [], "prompts": prompts}


def _changed_first(found: Mapping[tuple[str, int], list[dict[str, Any] | None]], most: int) -> list[tuple[str, int]]:
    """Prompts that were gained and lost in turns, then those that stayed wrong, then those that stayed right."""
    kinds: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for key, answers in found.items():
        scores = [answer["score"] or 0.0 for answer in answers if answer is not None]
        change = scores[-1] - scores[0]
        kinds[0 if change > 0 else 1 if change < 0 else 2 if scores[-1] <= 0 else 3].append(key)
    changing = [key for turn in range(most) for kind in (0, 1) for key in kinds[kind][turn : turn + 1]]
    staying = [key for turn in range(most) for kind in (2, 3) for key in kinds[kind][turn : turn + 1]]
    kept = changing[: max(most - 2 * max(1, most // 6), 1)]
    return (kept + staying + changing[len(kept) :])[:most]


def _cut(text: str, limits: Limits) -> tuple[str, int]:
    """(beginning, characters left out)."""
    return text[: limits.characters], max(0, len(text) - limits.characters)
