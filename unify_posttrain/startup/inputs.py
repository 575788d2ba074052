"""What a run reads from disk: what of it is not there yet, and the command that makes it.

A run refuses to start without its data. A dry run (`+dry_run=true`) is for planning, on a laptop too: it goes on without what
`unify_posttrain.prepare` would write, and says so. A path that nothing writes is a mistake in both.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.paths import is_remote

PREPARE = "python -m unify_posttrain.prepare"
DOWNLOAD = "hf download"
HELD_OUT = "validation.parquet"


@dataclass(frozen=True)
class Missing:
    """Something that the run needs and that a command makes.

    Attributes:
        what: the configuration key and the path.
        command: what makes it, ready for a shell.
    """

    what: str
    command: str


def missing_files(config: DictConfig) -> list[Missing]:
    """The data files that are not there but that `prepare` writes.

    Raises:
        ValueError: a file that is not there and that no `prepare` writes.
    """
    found, writers = [], None
    for key in ("train_files", "val_files"):
        files = config.data[key]
        for file in [files] if isinstance(files, str) else files:
            if is_remote(file) or Path(file).expanduser().is_file():
                continue
            writers = _writers(config) if writers is None else writers
            command = writers.get(_absolute(file))
            if command is None:
                raise ValueError(f"data.{key}: {file} does not exist; check the path")
            found.append(Missing(f"data.{key}: {file}", command))
    return found


def missing_model(config: DictConfig) -> list[Missing]:
    """The base model, if it is one that `prepare` builds and that is not there."""
    path = str(config.actor_rollout_ref.model.path)
    if OmegaConf.select(config, "prepare.model.folder") != path or Path(path).expanduser().is_dir():
        return []
    model = config.prepare.model
    command = f"{PREPARE} {shlex.join([f'task={model.pretraining.task}', f'model={model.name}'])}"
    return [Missing(f"actor_rollout_ref.model.path: {path}", command)]


def downloads(config: DictConfig) -> list[Missing]:
    """Models that the run fetches from the hub when it starts, because the local cache has no configuration of them."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    names = {
        key: OmegaConf.select(config, key, default=None)
        for key in ("actor_rollout_ref.model.path", "reward.custom_reward_function.reward_kwargs.model_path")
    }
    found = []
    for key, name in names.items():
        if name is None or Path(str(name)).expanduser().is_dir():
            continue
        try:
            cached = try_to_load_from_cache(str(name), "config.json")
        except HFValidationError:  # a path and no name: checked elsewhere
            continue
        if not isinstance(cached, str):
            found.append(Missing(f"{key}: {name}", f"{DOWNLOAD} {shlex.quote(str(name))}"))
    return found


def _writers(config: DictConfig) -> dict[Path, str]:
    """Every file that a `prepare` writes, and that call: each task where conf/task puts it, this run's where this run puts it."""
    writers, own = {}, OmegaConf.select(config, "prepare.task")
    for path in sorted((conf_dir() / "task").glob("*.yaml")):
        task = OmegaConf.load(path)
        settings = OmegaConf.select(task, "prepare.task")
        if settings is None:
            continue
        names = {*_default_names(task), *_further_names(settings)}
        writers |= {_absolute(Path(settings.folder) / name): f"{PREPARE} task={path.stem}" for name in names}
        if own is not None and own.name == path.stem:
            names |= set(_further_names(own))
            writers |= {_absolute(Path(own.folder) / name): _own_command(config) for name in names}
    return writers


def _own_command(config: DictConfig) -> str:
    """The call for this run's task: with the base model where the two belong together, and with what was said about the data."""
    model = OmegaConf.select(config, "prepare.model")
    choices = [f"task={config.prepare.task.name}"]
    if model is not None and model.pretraining.task == config.prepare.task.name:
        choices.append(f"model={model.name}")
    return f"{PREPARE} {shlex.join([*choices, *_given()])}"


def _default_names(task: DictConfig) -> Iterator[str]:
    """The files that conf/task/NAME.yaml trains and validates on."""
    for key in ("train_files", "val_files"):
        files = OmegaConf.select(task, f"data.{key}") or ()
        yield from (Path(file).name for file in ([files] if isinstance(files, str) else files))


def _further_names(settings: DictConfig) -> Iterator[str]:
    """The files that these settings of `prepare.task` write besides."""
    yield from (f"{name}.parquet" for name in settings.get("sets") or ())
    if settings.get("validation_rows") or settings.get("validation_split"):
        yield HELD_OUT


def _given() -> list[str]:
    """What this command line says about the data to prepare."""
    if not HydraConfig.initialized():
        return []
    return [override for override in HydraConfig.get().overrides.task if override.lstrip("+~").startswith("prepare.")]


def _absolute(path: str | Path) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))
