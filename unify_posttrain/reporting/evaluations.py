"""Evaluations of a run's checkpoints on the page: curves, a table, episodes turn by turn, and what `analyze forgetting` found."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.reporting.charts import Chart, make_chart, make_line
from unify_posttrain.reporting.panels import EVALUATIONS
from unify_posttrain.reporting.pictures import Pictures, opened
from unify_posttrain.reporting.run import entries, finite
from unify_posttrain.reporting.samples import evenly
from unify_posttrain.reporting.settings import Limits
from unify_posttrain.reporting.tables import NONE, table
from unify_posttrain.reporting.text import escape, percent
from unify_posttrain.reporting.thumbnails import Thumbnails
from unify_posttrain.reporting.turns import cut_parts, turns_of
from unify_posttrain.untrusted.documents import DocumentError, read_object
from unify_posttrain.untrusted.folders import member

RESULTS, FORGETTING = "results.json", "forgetting.json"
SETTINGS = "settings.json"  # beside the samples of a model and benchmark
HEAD = ("checkpoint", "benchmark", "solved", "95 %", "first answer", "other rule, of turns", "turns", "loss per token")
LONGEST_FACT = 80  # characters
TOLD = ("score", "acc", "turns", "right_turns")  # fields that the page shows in another form
Key = tuple[str, int]  # benchmark, row


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: its name, its folder, and for every model (label, step, entries of results.json)."""

    name: str
    folder: Path
    models: tuple[tuple[str, int | None, tuple[Mapping[str, Any], ...]], ...]


def read_evaluations(folders: Sequence[Path]) -> list[Evaluation]:
    """Evaluations as `python -m unify_posttrain.evaluate` leaves them.

    Raises:
        ValueError: a folder without results, or with other contents.
    """
    found = []
    for folder in folders:
        if not (folder / RESULTS).is_file():
            raise ValueError(f"--evaluation {folder}: holds no {RESULTS}; give the output folder of unify_posttrain.evaluate")
        try:
            models = read_object(folder / RESULTS)["models"]
            read = tuple((str(model["label"]), model["step"], tuple(_known(model["sources"]))) for model in models)
        except (DocumentError, KeyError, TypeError) as error:
            raise ValueError(f"--evaluation {folder}: {RESULTS} is no result of an evaluation ({error})") from error
        found.append(Evaluation(folder.resolve().name, folder, read))
    return found


def _known(sources: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in sources if isinstance(entry, Mapping) and isinstance(entry.get("accuracy"), Mapping)]


def read_verdicts(folders: Sequence[Path]) -> list[str]:
    """What analyses of forgetting concluded, a text each.

    Raises:
        ValueError: a folder without one.
    """
    said = []
    for folder in folders:
        try:
            seeds = read_object(folder / FORGETTING)["seeds"]
            said += [" ".join(map(str, seed["verdict"])).replace("**", "") for seed in seeds]
        except (DocumentError, KeyError, OSError, TypeError) as error:
            raise ValueError(
                f"--forgetting {folder}: holds no {FORGETTING} of unify_posttrain.analyze forgetting ({error})"
            ) from error
    return said


def curves(evaluations: Sequence[Evaluation]) -> list[Chart]:
    """Per evaluation of checkpoints: what is solved over the steps, and the loss of the worked answers where it was measured."""
    found = []
    for evaluation in evaluations:
        steps = [step for _, step, _ in evaluation.models]
        if len(steps) < 2 or None in steps:
            continue
        for title, caption, unit, value in (
            ("solved", "Share of the problems that a checkpoint solves.", "share", lambda entry: entry["accuracy"].get("mean")),
            ("loss of the worked answers", "Nats per token. It need not show what the accuracy loses.", "number",
             lambda entry: (entry.get("loss") or {}).get("per_token")),
        ):  # fmt: skip
            series = _series(evaluation, value)
            if series:
                found.append(make_chart(EVALUATIONS, f"{evaluation.name}: {title}", caption, unit, series))
    return found


def _series(evaluation: Evaluation, value: Any) -> list[dict[str, Any]]:
    points: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for _, step, sources in evaluation.models:
        for entry in sources:
            number = finite(value(entry))
            if number is not None:
                points[_title(entry)].append((int(step or 0), number))
    lines = [(title, sorted(pairs)) for title, pairs in points.items()]
    return [
        make_line(title, f"series{index}", 0, [step for step, _ in pairs], [number for _, number in pairs])
        for index, (title, pairs) in enumerate(lines)
    ]


def _title(entry: Mapping[str, Any]) -> str:
    benchmark, source = str(entry.get("benchmark")), str(entry.get("source"))
    return benchmark if benchmark == source else f"{benchmark}: {source}"


def section(evaluations: Sequence[Evaluation], verdicts: Sequence[str], data: Sequence[Mapping[str, Any]]) -> str:
    """HTML: verdicts, a table per evaluation, and the place of the browser."""
    said = "".join(f"<p>{escape(text)}</p>" for text in verdicts)
    tables = "".join(f"<h3>{escape(each.name)}</h3>{table(HEAD, _rows(each), 'numbers')}" for each in evaluations)
    shown = '<div class="browser" data-browser="evaluations"></div>' if any(each["steps"] for each in data) else ""
    return said + tables + shown


def _rows(evaluation: Evaluation) -> list[list[str]]:
    rows = []
    for label, _, sources in evaluation.models:
        for entry in sources:
            accuracy, episodes, loss = entry["accuracy"], entry.get("episodes") or {}, entry.get("loss") or {}
            low, high = finite(accuracy.get("low")), finite(accuracy.get("high"))
            shares = [_share(episodes.get(key)) for key in ("first_acc", "other_rule")]
            ends = NONE if low is None or high is None else f"{percent(low)} to {percent(high)}"
            turns, nats = finite(episodes.get("turns")), finite(loss.get("per_token"))
            rows.append([
                label, _title(entry), _share(accuracy.get("mean")), ends, *shares, NONE if turns is None else f"{turns:.2f}",
                NONE if nats is None else f"{nats:.4f}",
            ])  # fmt: skip
    return rows


def _share(value: Any) -> str:
    number = finite(value)
    return NONE if number is None else percent(number)


@dataclass(frozen=True)
class Question:
    """What a problem asks: its text, the ground truth, and references of the pictures that its prompt shows."""

    text: str
    gold: str | None = None
    pictures: Sequence[Mapping[str, Any]] = ()


def browser(
    evaluations: Sequence[Evaluation],
    limits: Limits,
    thumbnails: Thumbnails | None = None,
    given: Sequence[Path] = (),
    questions: Mapping[Key, Question] | None = None,
) -> list[dict[str, Any]]:
    """[{name, steps: [{step, prompts: [{prompt, pictures, gold, of, solved, rows}]}]}]: the same problems at some checkpoints.

    Those whose outcome changed come first.

    Args:
        evaluations: to be shown.
        limits: of the page.
        thumbnails: of the page; None: no pictures are shown.
        given: folders that pictures may be opened in, beside that of the evaluation.
        questions: by benchmark and row; None: what the samples say of them.
    """
    found = []
    for evaluation in evaluations:
        models = evenly(list(evaluation.models), limits.validation_steps)
        samples = [_samples(evaluation, label, sources) for label, _, sources in models]
        keys = _changed_first(samples, limits.validation_prompts)
        seen = {name: _pictures(evaluation, name, thumbnails, given) for name, _ in keys} if thumbnails is not None else {}
        known = questions or {}
        steps = [
            {
                "step": label,
                "prompts": [
                    _problem(of_model[key], key, limits, seen.get(key[0]), known.get(key)) for key in keys if key in of_model
                ],
            }
            for (label, _, _), of_model in zip(models, samples, strict=True)
        ]
        found.append({"name": evaluation.name, "steps": [step for step in steps if step["prompts"]]})
    return found


def _samples(evaluation: Evaluation, label: str, sources: Sequence[Mapping[str, Any]]) -> dict[Key, list[dict[str, Any]]]:
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for benchmark in dict.fromkeys(str(entry.get("benchmark")) for entry in sources):
        folder = member(evaluation.folder, f"samples/{label}/{benchmark}", str(evaluation.folder / RESULTS))
        for entry in entries(folder / "samples.jsonl", []):
            if isinstance(entry.get("row"), int):
                found[benchmark, entry["row"]].append(entry)
    return found


def _pictures(evaluation: Evaluation, benchmark: str, thumbnails: Thumbnails, given: Sequence[Path]) -> Pictures:
    """The pictures of a benchmark, whose settings name a corpus if it has one."""
    for label, _, _ in evaluation.models:
        try:
            folder = member(evaluation.folder, f"samples/{label}/{benchmark}", str(evaluation.folder / RESULTS))
            node = read_object(folder / SETTINGS).get("environment")
        except (DocumentError, OSError, ValueError):
            continue
        retriever = node.get("retriever") if isinstance(node, Mapping) else None
        corpus = retriever.get("corpus") if isinstance(retriever, Mapping) else None
        return opened(thumbnails, [evaluation.folder, *given], (), corpus)
    return opened(thumbnails, [evaluation.folder, *given], (), None)


def _right(samples: Sequence[Mapping[str, Any]]) -> int:
    return sum(sample.get("correct") == 1 for sample in samples)


def _changed_first(models: Sequence[Mapping[Key, Sequence[Mapping[str, Any]]]], most: int) -> list[Key]:
    """Benchmarks take turns; within each, problems whose outcome changed between the first checkpoint and the last come first."""
    by_benchmark: dict[str, list[tuple[bool, Key]]] = defaultdict(list)
    for key in sorted(set().union(*models)):
        counts = {_right(of_model[key]) for of_model in models if key in of_model}
        by_benchmark[key[0]].append((len(counts) < 2, key))
    ordered = [[key for _, key in sorted(pairs)] for pairs in by_benchmark.values()]
    turns = [key for place in range(max(map(len, ordered), default=0)) for keys in ordered for key in keys[place : place + 1]]
    return turns[:most]


def _problem(
    samples: Sequence[Mapping[str, Any]], key: Key, limits: Limits, pictures: Pictures | None, question: Question | None
) -> dict[str, Any]:
    asked = samples[0].get("prompt") if question is None else question.text
    rows = []
    for sample in sorted(samples, key=lambda each: str(each.get("number")))[: limits.rollout_rows]:
        turns = turns_of(sample, limits.characters, pictures)
        text = [] if turns else cut_parts([("on", str(sample.get("response", "")), None)], limits.characters)[0]
        rows.append({
            "kind": "rollout", "score": finite(sample.get("score")), "advantage": None, "weights": {}, "fields": _facts(sample),
            "segments": text, "turns": turns,
        })  # fmt: skip
    prompt = f"{key[0]}, row {key[1]}" + (f": {asked}" if isinstance(asked, str) else "")
    shown = [] if pictures is None or question is None else pictures.of_prompt([dict(each) for each in question.pictures])
    gold = None if question is None or question.gold is None else question.gold[: limits.characters]
    return {
        "prompt": prompt[: limits.characters], "pictures": shown, "gold": gold, "of": len(samples), "solved": _right(samples),
        "rows": rows,
    }  # fmt: skip


def _facts(sample: Mapping[str, Any]) -> dict[str, str]:
    """Why a sample ended, what was read in it, and what its environment says of it: numbers that are not 0."""
    said = {"ended": str(sample["stop"])} if sample.get("stop") else {}
    if sample.get("answer"):
        said["answer"] = str(sample["answer"])[:LONGEST_FACT]
    fields = sample.get("fields") if isinstance(sample.get("fields"), Mapping) else {}
    numbers = {str(name): finite(value) for name, value in fields.items() if name not in TOLD}
    return {**said, **{name: f"{value:.4g}" for name, value in numbers.items() if value}}
