"""Benchmarks with their protocols: by name (conf/evaluate.yaml, `define.benchmarks`), as a file, or the validation of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.evaluation.models import safe_name
from unify_posttrain.tasks.environment import ENVIRONMENTS

VALIDATION = "validation"  # name of the benchmark that a run's own validation files are
SAMPLING = ("n", "temperature", "top_p", "top_k")
# What judges one answer of an environment: rows and settings are checked by it before anything is generated.
ONE_TURN = {"path": "pkg://unify_posttrain.tasks.environment", "name": "compute_score"}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark with its protocol.

    Attributes:
        name: in tables and file names.
        files: parquet files.
        n, temperature, top_p, top_k: of its samples.
        group: benchmarks whose mean is shown.
        reward: node {path, name, reward_kwargs} of the reward function.
        answers: node {path, name} of the function that finds the answer where the reward gives none.
        max_samples, sample_seed: choice of problems as training's `data.val_max_samples`; None: all.
        sources: `data_source`s of the files that belong to it; None: all.
        environment: settings of the environment that is played, turn by turn; None: an answer is scored by `reward`.
        split_by: fields of `extra_info` by whose values the accuracy of an environment is split.
    """

    name: str
    files: tuple[Path, ...]
    n: int
    temperature: float
    top_p: float
    top_k: int
    group: str
    reward: Mapping[str, Any]
    answers: Mapping[str, Any]
    max_samples: int | None = None
    sample_seed: int | None = None
    sources: tuple[str, ...] | None = None
    environment: Mapping[str, Any] | None = None
    split_by: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        where = f"benchmark {self.name}"
        if self.n < 1:
            raise ValueError(f"{where}: n={self.n} must be at least 1")
        if self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{where}: temperature={self.temperature} must be >= 0 and top_p={self.top_p} in (0, 1]")
        if self.n > 1 and self.temperature == 0:
            raise ValueError(f"{where}: n={self.n} samples at temperature=0 are all the same; set n=1 or a temperature above 0")


def chosen_benchmarks(config: DictConfig, trained: DictConfig | None) -> list[Benchmark]:
    """The benchmarks of the key `benchmarks`; nothing given: the run's own validation.

    Args:
        config: of the evaluation.
        trained: of the run, if there is one.

    Raises:
        ValueError: an unknown or repeated name, or one without a way to score its answers.
    """
    wanted = _plain(config.benchmarks)
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if not wanted:
        if trained is None:
            known = ", ".join(config.define.benchmarks)
            raise ValueError(f"benchmarks={wanted}: give names ({known}) or parquet files, e.g. benchmarks=[math500]")
        wanted = [VALIDATION]
    found = [_benchmark(config, str(name), trained) for name in wanted]
    names = [benchmark.name for benchmark in found]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(
            f"benchmarks={list(wanted)}: {repeated[0]} is there twice; name each once, and rename files of equal names"
        )
    changes = _plain(config.environment)
    if changes and not any(benchmark.environment for benchmark in found):
        raise ValueError(f"environment={changes}: none of benchmarks={list(wanted)} plays an environment; leave the key out")
    return found


def _benchmark(config: DictConfig, name: str, trained: DictConfig | None) -> Benchmark:
    if name in config.define.benchmarks:
        node = _plain(config.define.benchmarks[name])
    elif name == VALIDATION and trained is not None:
        node = _validation(config, trained)
    elif name.endswith(".parquet"):
        node = {**_plain(config.file), "files": [name]}
        name = safe_name(Path(name).stem)
    else:
        known = ", ".join([*config.define.benchmarks, *([] if trained is None else [VALIDATION])])
        raise ValueError(f"benchmarks: {name!r} is unknown; choose among {known}, or give a .parquet file")
    own = None if trained is None else _plain(OmegaConf.select(trained, "environment"))
    if node.get("environment") is not None:
        node |= _played(name, node["environment"], own, trained, _plain(config.environment))
    elif node["reward"] is None and own is not None:  # the rows are the run's, so its environment judges them
        node |= _played(name, own, own, None, _plain(config.environment))
    if node["reward"] is None and trained is not None:
        node["reward"] = _plain(trained.reward.custom_reward_function)
    if node["reward"] is None:
        raise ValueError(
            f"benchmark {name} has no reward function; set file.reward={{path: …, name: …}} (as in define.rewards), or give "
            "run=FOLDER"
        )
    given = {key: config[key] for key in SAMPLING if config[key] is not None}
    tuples = {key: tuple(node[key]) for key in ("sources", "split_by") if node.get(key) is not None}
    files = tuple(Path(file) for file in node["files"])
    return Benchmark(name=safe_name(name), **{**node, **given, **tuples, "files": files})


def _played(
    name: str,
    environment: str | Mapping[str, Any],
    own: Mapping[str, Any] | None,
    trained: DictConfig | None,
    changes: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """What a benchmark of an environment is completed with: its settings, and the files of a run of the same environment.

    Args:
        name: of the benchmark.
        environment: name of an environment, or the whole node.
        own: the run's environment.
        trained: the run whose files are taken if it was trained on this environment; None: the benchmark has its own.
        changes: of the key `environment`.
    """
    wanted = environment if isinstance(environment, str) else environment.get("name")
    files: dict[str, Any] = {}
    if own is not None and own.get("name") == wanted:
        if trained is not None:  # other files may hold other prompts than the run was trained on
            given = _plain(trained.data.val_files)
            files = {"files": [given] if isinstance(given, str) else given}
        environment = own
    elif isinstance(environment, str):
        environment = task_environment(name, environment)
    settings = _changed(environment, changes or {})
    return {**files, "environment": settings, "reward": {**ONE_TURN, "reward_kwargs": {"environment": settings}}}


def _changed(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes, key by key in nodes below."""
    both = {key for key, value in changes.items() if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping)}
    return {**settings, **{key: _changed(settings[key], value) if key in both else value for key, value in changes.items()}}


def task_environment(benchmark: str, name: str) -> dict[str, Any]:
    """The node `environment` of the task file with this name.

    Raises:
        ValueError: there is none; names the benchmark.
    """
    path = conf_dir() / "task" / f"{name}.yaml"
    if name not in ENVIRONMENTS or not path.is_file():
        raise ValueError(
            f"benchmark {benchmark}: environment={name!r} is unknown; choose one of {', '.join(sorted(ENVIRONMENTS))}, or write "
            "the settings of yours: environment={name: …, max_turns: …}"
        )
    found = _plain(OmegaConf.load(path).environment)
    if not isinstance(found, dict):
        raise ValueError(f"benchmark {benchmark}: {path} has no node environment")
    return found


def _validation(config: DictConfig, trained: DictConfig) -> dict[str, Any]:
    """A run's own validation: its files, its sampling, its reward."""
    files, values = _plain(trained.data.val_files), trained.actor_rollout_ref.rollout.val_kwargs
    reward = _plain(trained.reward.custom_reward_function)
    alike = (
        benchmark.answers
        for benchmark in config.define.benchmarks.values()
        if benchmark.reward is not None
        and (benchmark.reward.path, benchmark.reward.name) == (reward.get("path"), reward.get("name"))
    )
    most = OmegaConf.select(trained, "data.val_max_samples")
    return {
        "files": [files] if isinstance(files, str) else files,
        **{key: values[key] for key in SAMPLING},
        "group": VALIDATION,
        "reward": None if OmegaConf.select(trained, "environment") is not None else reward,
        "answers": _plain(next(alike, config.file.answers)),
        "max_samples": None if most is None or most < 0 else most,
        "sample_seed": trained.data.seed if OmegaConf.select(trained, "data.shuffle") else None,
    }


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
