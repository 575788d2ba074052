"""Scores per problem of evaluated checkpoints: what `python -m unify_posttrain.evaluate run=…` has left in its folder."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unify_posttrain.analysis.forgetting import Curve
from unify_posttrain.untrusted.documents import DocumentError, parse, read_object
from unify_posttrain.untrusted.folders import member

RESULTS, SAMPLES, SETTINGS = "results.json", "samples.jsonl", "settings.json"
START = re.compile(r"(\d{1,9})$")


@dataclass(frozen=True)
class Sweep:
    """One evaluation.

    Attributes:
        name: as the user gave it.
        folder: its folder.
        steps: step of a checkpoint -> its label; a model that is no checkpoint has step 0.
        benchmarks: names.
        entries: (step, benchmark) -> what results.json says of the benchmark's first source.
    """

    name: str
    folder: Path
    steps: Mapping[int, str]
    benchmarks: tuple[str, ...]
    entries: Mapping[tuple[int, str], Mapping[str, Any]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """The last evaluated step."""
        return max(self.steps)


def open_sweep(key: str, name: str, evaluations: Path) -> Sweep:
    """An evaluation by its name or its folder.

    Raises:
        ValueError: there is none, it is not finished, or it is of several models that are no checkpoints.
    """
    folder = next((path for path in (Path(name).expanduser(), evaluations / name) if (path / RESULTS).is_file()), None)
    if folder is None:
        raise ValueError(
            f"{key}={name}: neither {name} nor {evaluations / name} holds {RESULTS}; run python -m unify_posttrain.evaluate "
            f"run=FOLDER benchmarks=[…] name={Path(name).name} first"
        )
    content = read_object(folder / RESULTS)
    try:
        models = [(int(model["step"] or 0), str(model["label"])) for model in content["models"]]
        benchmarks = tuple(map(str, content["settings"]["benchmarks"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / RESULTS} is no result of an evaluation ({type(error).__name__}: {error})") from error
    if len({step for step, _ in models}) != len(models):
        raise ValueError(f"{key}={name} compares models that are no checkpoints of one run; evaluate the run (run=FOLDER)")
    return Sweep(name, folder, dict(models), benchmarks, _entries(content["models"]))


def _entries(models: Any) -> dict[tuple[int, str], Mapping[str, Any]]:
    """What does not have the expected form is left out: the shares come from the samples."""
    found: dict[tuple[int, str], Mapping[str, Any]] = {}
    for model in models:
        for entry in model.get("sources") or ():
            if isinstance(entry, Mapping):
                found.setdefault((int(model["step"] or 0), str(entry.get("benchmark"))), entry)
    return found


# Outcomes of a turn in which nothing was found that could be right or wrong, in the words of the environments.
UNREADABLE = ("illegal_formula", "no_action", "no_answer")


def answers(sweep: Sweep, benchmark: str, step: int) -> dict[str, float | None] | None:
    """How a checkpoint answered, beside how often it was right: first_acc, turns, other_rule (share of turns that are right under
    the rule that is not asked for), unreadable (share of turns) and loss (of the worked answers, per token).

    Returns:
        None if the evaluation has neither episodes nor losses.
    """
    entry = sweep.entries.get((step, benchmark), {})
    episodes, loss = entry.get("episodes") or {}, entry.get("loss") or {}
    if not episodes and not loss:
        return None
    outcomes = episodes.get("outcomes") or {}
    known = [outcomes[name] for name in UNREADABLE if name in outcomes]
    return {
        **{key: episodes.get(key) for key in ("first_acc", "turns", "other_rule")},
        "unreadable": sum(known) if known else None,
        "loss": loss.get("per_token"),
    }


def find_column(key: str, value: str | None, ending: str, sweeps: Sequence[Sweep], required: bool) -> str | None:
    """The benchmark of the keys `id` and `ood`: as given, else the only one whose name ends in `ending`.

    Raises:
        ValueError: it was not evaluated, or cannot be told.
    """
    known = [name for name in sweeps[0].benchmarks if all(name in sweep.benchmarks for sweep in sweeps)]
    if value is not None:
        if value not in known:
            raise ValueError(f"{key}={value} was not evaluated for every run; choose one of {', '.join(known) or 'none'}")
        return value
    found = [name for name in known if name.endswith(ending)]
    if len(found) == 1:
        return found[0]
    if not required and not found:
        return None
    raise ValueError(f"{key} is not set, and of {', '.join(known) or 'no benchmark'} {len(found)} end in {ending}; set {key}=NAME")


def scores(sweep: Sweep, benchmark: str, steps: Sequence[int] | None = None) -> Curve:
    """Step -> problem -> mean correctness over its samples; problems without a usable ground truth are left out.

    Raises:
        ValueError: samples are missing or damaged.
    """
    return {step: _scores(_samples(sweep, sweep.steps[step], benchmark)) for step in (steps or sorted(sweep.steps))}


def _samples(sweep: Sweep, label: str, benchmark: str) -> Path:
    source = str(sweep.folder / RESULTS)
    return member(sweep.folder, f"samples/{label}/{benchmark}", source)


def _scores(folder: Path) -> dict[int, float]:
    path = folder / SAMPLES
    if not path.is_file():
        raise ValueError(f"{path} is missing; run the evaluation again, which adds what is missing")
    values: dict[int, list[float]] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            sample = parse(line)
            row, correct, usable = int(sample["row"]), float(bool(sample["correct"])), bool(sample["gold_ok"])
        except (DocumentError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number} is damaged ({error}); delete the line and run the evaluation again") from error
        if usable:
            values.setdefault(row, []).append(correct)
    return {row: sum(each) / len(each) for row, each in values.items()}


def check_same_problems(sweeps: Sequence[Sweep], benchmark: str) -> None:
    """Differences are paired: all must have seen the same files.

    Raises:
        ValueError: names the two that differ.
    """
    seen: dict[Any, str] = {}
    for sweep in sweeps:
        for label in sweep.steps.values():
            path = _samples(sweep, label, benchmark) / SETTINGS
            digest = str(read_object(path).get("benchmark")) if path.is_file() else None
            seen.setdefault(digest, f"{sweep.name} ({label})")
    if len(seen) > 1:
        first, second = list(seen.values())[:2]
        raise ValueError(
            f"{benchmark}: {first} and {second} were evaluated on different files; evaluate both on the same ones, with another "
            "name="
        )


def starts(node: Any) -> dict[int, str]:
    """RL runs of the key `rl`: {step: evaluation}, or a list of evaluations whose names end in the step that they started from.

    Raises:
        ValueError: something else.
    """
    if node is None:
        return {}
    if isinstance(node, Mapping):
        pairs = list(node.items())
    else:
        names = [node] if isinstance(node, str) else list(node)
        pairs = [(found[1] if (found := START.search(str(name))) else None, name) for name in names]
    found_steps: dict[int, str] = {}
    for step, name in pairs:
        if step is None or not str(step).isdigit():
            raise ValueError(f"rl={name}: the step of fine-tuning that it started from is unknown; write rl={{STEP: {name}}}")
        if int(step) in found_steps:
            raise ValueError(f"rl: two runs started from step {step}; give one of them, or one list per seed")
        found_steps[int(step)] = str(name)
    return dict(sorted(found_steps.items()))
