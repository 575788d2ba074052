"""The files of a run, read so that a run in progress, a killed one and a resumed one all give what they have."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unify_posttrain.redaction import redacted, redacted_overrides

CONFIG, METRICS, GATE, ENVIRONMENT, RECORD = "config.yaml", "metrics.jsonl", "gate.jsonl", "environment.json", "record.json"
SAMPLES = "samples"
STEP_FILE = re.compile(r"(\d+)\.jsonl")
HYDRA_OVERRIDES = Path("hydra/.hydra/overrides.yaml")
TRAINED = "training/global_step"  # in the metrics of every training step, not in those of a validation alone


@dataclass(frozen=True)
class Run:
    """What is known about a run.

    Attributes:
        folder: where its files are.
        label: its name on the page, unique there.
        config: resolved configuration; empty if there is none.
        metrics: step -> name -> finite value, by step.
        not_finite: name -> steps at which it was NaN or infinite.
        gate: step -> (row_id, solved rollouts, zone) of every prompt.
        environment: versions and host; None if nothing recorded them.
        overrides: Hydra's, of the last start.
        validated: rows of the newest file of validation samples, 0 without one.
        updated: when the metrics were last written; None without metrics.
        damage: what could not be read, in words.
    """

    folder: Path
    label: str
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    gate: dict[int, list[tuple[int, int, str]]] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    overrides: tuple[str, ...] = ()
    validated: int = 0
    updated: datetime | None = None
    damage: tuple[str, ...] = ()

    def setting(self, key: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted key; `default` if it is absent or null."""
        node: Any = self.config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    @property
    def algorithm(self) -> str:
        return str(self.setting("fusion.algorithm", "unknown"))

    @property
    def model(self) -> str:
        return Path(str(self.setting("actor_rollout_ref.model.path", "unknown"))).name

    @property
    def task(self) -> str:
        files = self.setting("data.train_files", "unknown")
        return str(self.setting("prepare.task.name", Path(str(files[0] if isinstance(files, list) and files else files)).stem))

    @property
    def trained_steps(self) -> list[int]:
        return [step for step, values in self.metrics.items() if TRAINED in values]

    @property
    def done(self) -> int:
        """The last step that was trained, 0 if there is none."""
        return max(self.trained_steps, default=0)

    @property
    def planned(self) -> int | None:
        steps = self.setting("trainer.total_training_steps")
        return steps if isinstance(steps, int) and steps > 0 else None

    def series(self, name: str, counted: str | None = None) -> tuple[list[int], list[float]]:
        """(steps, values) of a metric, without the steps at which `counted` is 0: what there is nothing of cannot be measured."""
        found = [
            (step, values[name])
            for step, values in self.metrics.items()
            if name in values and (counted is None or values.get(counted) != 0)
        ]
        return [step for step, _ in found], [value for _, value in found]

    def total(self, name: str) -> float:
        """Sum of a metric over all steps."""
        return math.fsum(self.series(name)[1])


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read several runs and give them names that differ.

    Raises:
        ValueError: no folder, one given twice, or one that is no run.
    """
    if not folders:
        raise ValueError("no run given: name at least one folder of a run, e.g. outputs/runs/hpt")
    resolved = [Path(folder).resolve() for folder in folders]
    twice = [str(folder) for folder, path in zip(folders, resolved, strict=True) if resolved.count(path) > 1]
    if twice:
        raise ValueError(f"{twice[0]} is given twice; give every run once")
    runs = [read_run(Path(folder)) for folder in folders]
    names = [run.label for run in runs]
    labels = [
        name if names.count(name) == 1 else f"{path.parent.name}/{path.name}" for name, path in zip(names, resolved, strict=True)
    ]
    unique = [label if labels.count(label) == 1 else f"{label} ({number})" for number, label in enumerate(labels, start=1)]
    return [replace(run, label=label) for run, label in zip(runs, unique, strict=True)]


def read_run(folder: Path) -> Run:
    """Read one run.

    Raises:
        ValueError: the folder holds neither configuration nor metrics.
    """
    if not any((folder / name).is_file() for name in (CONFIG, METRICS)):
        raise ValueError(
            f"{folder} is no run: it has neither {CONFIG} nor {METRICS}; give the folder of a run (trainer.run_dir, by default "
            "outputs/runs/<trainer.experiment_name>)"
        )
    damage: list[str] = []
    config = redacted(_mapping(folder / CONFIG, damage))  # a run of an older release, or of plain verl, did not
    metrics, not_finite = _metrics(folder / METRICS, damage)
    updated = (folder / METRICS).stat().st_mtime if (folder / METRICS).is_file() else None
    trainer = config.get("trainer")
    name = trainer.get("experiment_name") if isinstance(trainer, dict) else None
    return Run(
        folder=folder,
        label=str(name or folder.resolve().name),
        config=config,
        metrics=metrics,
        not_finite=not_finite,
        gate=_gate(folder / GATE, damage),
        environment=_environment(folder, damage),
        overrides=_overrides(folder / HYDRA_OVERRIDES),
        validated=sum(1 for file in list(step_files(folder / SAMPLES).values())[-1:] for _ in entries(file, [])),
        updated=None if updated is None else datetime.fromtimestamp(updated, timezone.utc),
        damage=tuple(damage),
    )


def step_files(folder: Path) -> dict[int, Path]:
    """The files N.jsonl of a folder by N; links are not followed."""
    if not folder.is_dir():
        return {}
    found = {STEP_FILE.fullmatch(path.name): path for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    return dict(sorted((int(match[1]), path) for match, path in found.items() if match))


def entries(path: Path, damage: list[str]) -> Iterator[dict[str, Any]]:
    """The JSON objects of a file of lines. Others are counted: the last line of a run in progress may be half written."""
    if not path.is_file():
        return
    torn = 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                entry = json.loads(line) if line.strip() else None
            except (json.JSONDecodeError, RecursionError):
                entry = line
            if isinstance(entry, dict):
                yield entry
            elif entry is not None:
                torn += 1
    if torn:
        damage.append(f"{path.name}: {torn} line{'s' if torn > 1 else ''} cut short or not JSON, left out")


def is_step(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def finite(value: Any) -> float | None:
    """A JSON value as a number; None for everything that is none or not finite."""
    if not isinstance(value, bool | int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond the floats
        return None


def _metrics(path: Path, damage: list[str]) -> tuple[dict[int, dict[str, float]], dict[str, list[int]]]:
    """Values by step. A resumed run may validate the step that it starts from once more: the later value counts."""
    metrics: dict[int, dict[str, float]] = {}
    not_finite: dict[str, list[int]] = defaultdict(list)
    repeated = []
    for entry in entries(path, damage):
        step, data = entry.get("step"), entry.get("data")
        if not is_step(step) or not isinstance(data, dict):
            continue
        values = metrics.setdefault(step, {})
        if TRAINED in values and TRAINED in data:
            repeated.append(step)
        for name, value in data.items():
            if isinstance(value, bool | str | list | dict):
                continue
            number = finite(value)  # verl's file logger writes NaN and infinities as null
            if number is None:
                not_finite[name].append(step)
            else:
                values[name] = number
    if repeated:
        damage.append(f"{path.name}: steps {min(repeated)} to {max(repeated)} were written more than once; the last values count")
    return dict(sorted(metrics.items())), dict(not_finite)


def _gate(path: Path, damage: list[str]) -> dict[int, list[tuple[int, int, str]]]:
    gate = {}
    for entry in entries(path, damage):
        step, groups = entry.get("step"), entry.get("groups")
        if is_step(step) and isinstance(groups, list):
            gate[step] = [
                (group[0], group[1], str(group[2]))
                for group in groups
                if isinstance(group, list) and len(group) == 3 and is_step(group[0]) and is_step(group[1])
            ]
    return dict(sorted(gate.items()))


def _mapping(path: Path, damage: list[str]) -> dict[str, Any]:
    """A YAML or JSON file whose top level is a mapping; anything else is damage."""
    if not path.is_file():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(path)) if path.suffix == ".yaml" else json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        damage.append(f"{path.name} cannot be read: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return {}
    if not isinstance(content, dict):
        damage.append(f"{path.name} holds no mapping")
        return {}
    return content


def _environment(folder: Path, damage: list[str]) -> dict[str, Any] | None:
    """environment.json, or what the study recorded of its run."""
    found = redacted(_mapping(folder / ENVIRONMENT, damage))
    if found:
        return found
    record = redacted(_mapping(folder / RECORD, damage))
    kept = {name: record[name] for name in ("versions", "source", "started", "seconds", "status") if name in record}
    return kept or None


def _overrides(path: Path) -> tuple[str, ...]:
    if not path.is_file():
        return ()
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    except yaml.YAMLError:
        return ()
    return tuple(redacted_overrides([str(item) for item in content])) if isinstance(content, list) else ()
