"""Which runs a study is made of: settings of conf/study.yaml, and the overrides of every run.

A run's overrides are plain text that depends on the configuration alone, so that a record on disk can be recognised as
one of today's settings or of others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import compose_config

EVALUATION, SEARCH = "evaluation", "search"  # what a run is for
LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
PLAIN_TEXT = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")  # needs no quotes in an override ...
NOT_TEXT = ("null", "true", "false", "nan", "inf")  # ... unless it would be read as something else
LABEL = re.compile(r"[A-Za-z0-9_]+")  # a part of folder names and of trainer.experiment_name


@dataclass(frozen=True)
class Run:
    """One training."""

    task: str
    algorithm: str  # label of define.algorithms
    seed: int
    learning_rate: float | None  # None: what the task's overrides set
    purpose: str  # EVALUATION | SEARCH
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """`trainer.experiment_name` and the folder under runs/."""
        return run_name(self.task, self.algorithm, self.seed, self.learning_rate, self.purpose)


@dataclass(frozen=True)
class Grid:
    """The settings of conf/study.yaml, checked.

    `tasks`, `algorithms` and `seeds` are what is run now; `defined_tasks` and `defined_algorithms` are all that have a name.
    """

    folder: Path
    tasks: tuple[str, ...]
    algorithms: tuple[str, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float | None, ...]
    search_seeds: tuple[int, ...]
    baseline: str
    confidence: float
    splits: tuple[str, ...]
    common: tuple[str, ...]
    equal: tuple[str, ...]
    defined_tasks: dict[str, tuple[str, ...]]
    defined_algorithms: dict[str, tuple[str, ...]]
    parallel: int
    timeout_seconds: float
    grace_seconds: float
    poll_seconds: float
    log_tail_lines: int
    environment: dict[str, str]
    notes: dict[str, str]  # task -> what a reader of its table should know

    @classmethod
    def from_config(cls, config: DictConfig) -> Grid:
        """Read and check conf/study.yaml.

        Raises:
            ValueError: names key, value and remedy.
        """
        values: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
        define = values.pop("define")
        values.pop("hydra", None)
        tasks = {name: tuple(map(str, overrides)) for name, overrides in define["tasks"].items()}
        algorithms = {name: tuple(map(str, overrides)) for name, overrides in define["algorithms"].items()}
        for key, labels in (("define.tasks", tasks), ("define.algorithms", algorithms)):
            for label in labels:
                if not LABEL.fullmatch(str(label)):
                    raise ValueError(f"{key}.{label}: a label names folders; use letters, digits and _ only")
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise ValueError(
                f"{', '.join(sorted(unknown))}: no such key in conf/study.yaml; python -m unify_posttrain.study --cfg job"
            )
        _check_numbers(values)
        if values["baseline"] not in algorithms:
            raise ValueError(f"baseline={values['baseline']} is not in define.algorithms; choose one of {', '.join(algorithms)}")
        return cls(
            **values
            | {
                "folder": Path(values["folder"]).expanduser().resolve(),
                "tasks": _select("tasks", values["tasks"], tasks),
                "algorithms": _select("algorithms", values["algorithms"], algorithms),
                "defined_tasks": tasks,
                "defined_algorithms": algorithms,
                "common": tuple(as_overrides(values["common"])),
                "environment": {key: str(value) for key, value in values["environment"].items()},
            }
            | {key: tuple(values[key]) for key in ("seeds", "learning_rates", "search_seeds", "splits", "equal")}
        )

    @property
    def searches(self) -> bool:
        """Whether there is more than one learning rate to choose from."""
        return len(self.learning_rates) > 1

    def run(self, task: str, algorithm: str, seed: int, learning_rate: float | None, purpose: str = EVALUATION) -> Run:
        """The run of these coordinates; later overrides win, so an algorithm's own follow what is common."""
        overrides = (
            *self.defined_tasks[task],
            *self.common,
            *(() if learning_rate is None else (f"{LEARNING_RATE}={learning_rate!r}",)),
            *self.defined_algorithms[algorithm],
            f"fusion.seed={seed}",
            "trainer.resume_mode=disable",
            f"trainer.experiment_name={run_name(task, algorithm, seed, learning_rate, purpose)}",
        )
        return Run(task, algorithm, seed, learning_rate, purpose, overrides)

    def search_runs(self) -> list[Run]:
        """Every algorithm with every rate; none if there is one rate only."""
        if not self.searches:
            return []
        return [
            self.run(task, algorithm, seed, rate, SEARCH)
            for task, algorithm in self.pairs()
            for seed in self.search_seeds
            for rate in self.learning_rates
        ]

    def pairs(self) -> Iterator[tuple[str, str]]:
        """The selected (task, algorithm)."""
        return ((task, algorithm) for task in self.tasks for algorithm in self.algorithms)

    def prepare_overrides(self, task: str) -> tuple[str, ...]:
        """What `python -m unify_posttrain.prepare` is given for a task."""
        return (*self.defined_tasks[task], *self.common)


def run_name(task: str, algorithm: str, seed: int, learning_rate: float | None, purpose: str) -> str:
    """task-algorithm-seed, and the rate for a run of the search."""
    name = f"{task}-{algorithm}-{seed}"
    return name if purpose == EVALUATION else f"{name}-lr{learning_rate!r}"


def effective_settings(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Values of `keys` in the configuration that the run will compose; None for a key that it does not have.

    Raises:
        ValueError: the overrides do not compose; names the run's task and algorithm.
    """
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = compose_config(run.overrides)
        container = OmegaConf.to_container(OmegaConf.create({key: OmegaConf.select(config, key) for key in keys}))
        return {str(key): value for key, value in container.items()}  # type: ignore[union-attr]
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ValueError(
            f"define.tasks.{run.task} with define.algorithms.{run.algorithm} does not compose: {error}\n"
            "correct them, or leave them out with tasks=[...] and algorithms=[...]"
        ) from error


def as_overrides(node: dict[str, Any], above: str = "") -> Iterator[str]:
    """A tree of settings as overrides: {"trainer": {"test_freq": 5}} -> trainer.test_freq=5."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from as_overrides(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={_as_text(value)}"


def _as_text(value: Any) -> str:
    """A value as Hydra's grammar reads it back, with its type."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list):
        return f"[{','.join(map(_as_text, value))}]"
    if isinstance(value, str) and not (PLAIN_TEXT.fullmatch(value) and value.lower() not in NOT_TEXT):
        # In Hydra's quotes a backslash is itself, unless it stands before a quote.
        escaped = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), value)
        return f'"{escaped}"'
    return str(value)


def _check_numbers(values: dict[str, Any]) -> None:
    for key in ("seeds", "search_seeds"):
        seeds = values[key]
        if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) != len(seeds):
            raise ValueError(f"{key}={seeds} must be different integers >= 0, at least one")
    rates = values["learning_rates"]
    fixed = rates == [None]
    if not fixed and (not rates or len(set(rates)) != len(rates) or any(not isinstance(r, float) or r <= 0 for r in rates)):
        raise ValueError(
            f"learning_rates={rates} must be different numbers above 0 with a point or an exponent (1.0e-4), or [null] alone"
        )
    if len(rates) > 1 and set(values["seeds"]) & set(values["search_seeds"]):
        raise ValueError(
            f"search_seeds={values['search_seeds']} and seeds={values['seeds']} overlap: a rate chosen for its luck on a seed "
            "would be reported with that seed; use different ones"
        )
    if not 0 < values["confidence"] < 1:
        raise ValueError(f"confidence={values['confidence']} must lie between 0 and 1, e.g. 0.95")
    if type(values["parallel"]) is not int or values["parallel"] < 1:
        raise ValueError(f"parallel={values['parallel']} must be an integer >= 1")
    for key in ("timeout_seconds", "poll_seconds"):
        if not values[key] > 0:
            raise ValueError(f"{key}={values[key]} must be above 0")
    if not values["splits"]:
        raise ValueError("splits=[] leaves nothing to rank by; name at least one, e.g. [hard]")


def _select(key: str, wanted: Sequence[str] | None, defined: dict[str, Any]) -> tuple[str, ...]:
    """The wanted labels, in the order of their definition; null: all."""
    if wanted is None:
        return tuple(defined)
    for label in wanted:
        if label not in defined:
            near = get_close_matches(str(label), defined, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{key}: {label} is not in define.{key}; choose from {', '.join(defined)}{hint}")
    return tuple(label for label in defined if label in wanted)
