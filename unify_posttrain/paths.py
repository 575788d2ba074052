"""Paths as users write them: `~`, slashes at the end, and addresses that are no paths.

A shell expands `~` at the beginning of a word only, so `trainer.run_dir=~/runs` arrives as it is written; Hydra cannot read it and
`pathlib` would make a folder called `~`. Nothing here imports anything heavy.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf

HOME_VARIABLE = "UNIFY_HOME"  # below which conf/ puts data, models and runs
# Where a run writes, or reads its own state: these must be folders of this machine.
WRITTEN = (
    "trainer.run_dir",
    "trainer.default_local_dir",
    "trainer.validation_data_dir",
    "trainer.rollout_data_dir",
    "trainer.resume_from_path",
)
FILES = ("data.train_files", "data.val_files", "reward.custom_reward_function.path")
MODELS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.hf_config_path",
    "actor_rollout_ref.model.lora_adapter_path",
    "critic.model.path",
    "critic.model.tokenizer_path",
    "reward.reward_model.model_path",
    "reward.custom_reward_function.reward_kwargs.model_path",
)
REMOTE = re.compile(r"(?!pkg:|file:)[A-Za-z][\w+.-]*://")
_BEGINS_AT_HOME = re.compile(r"[^=\s]+=\[?\s*['\"]?~(?=[/,\]'\"]|$)")
_HOME = re.compile(r"(?<=[=\[,])(\s*['\"]?)~(?=[/,\]'\"]|$)")


def is_remote(path: object) -> bool:
    """Whether a path is an address, such as `s3://bucket/folder`."""
    return isinstance(path, str) and REMOTE.match(path) is not None


def expand_home(arguments: Sequence[str]) -> list[str]:
    """A command line with `~` replaced by the home folder, in values that begin with it and in lists of them.

    >>> os.environ["HOME"] = "/home/me"
    >>> expand_home(["trainer.run_dir=~/runs/a", "data.val_files=[~/a.parquet,~/b.parquet]", "~fusion.shaping"])
    ['trainer.run_dir=/home/me/runs/a', 'data.val_files=[/home/me/a.parquet,/home/me/b.parquet]', '~fusion.shaping']
    """
    home = os.path.expanduser("~")
    return [_HOME.sub(lambda found: found[1] + home, each) if _BEGINS_AT_HOME.match(each) else each for each in arguments]


def expand_environment() -> None:
    """The same in the variable that `conf/` reads: a file of variables (a container's, a scheduler's) is read by no shell."""
    value = os.environ.get(HOME_VARIABLE, "")
    if value.startswith("~"):
        os.environ[HOME_VARIABLE] = os.path.expanduser(value)


def check_written(arguments: Sequence[str]) -> None:
    """Refuse addresses where a folder must be, before Hydra makes a folder of that name.

    Args:
        arguments: a command line.

    Raises:
        ValueError: names key, value and remedy.
    """
    given = [each.lstrip("+").partition("=")[::2] for each in arguments]
    for key, value in [*given, (HOME_VARIABLE, os.environ.get(HOME_VARIABLE))]:
        if key in (*WRITTEN, HOME_VARIABLE):
            check_local(key, value.strip("'\"") if value else value)


def check_local(key: str, value: object) -> None:
    """
    Raises:
        ValueError: the value is an address.
    """
    if is_remote(value):
        raise ValueError(
            f"{key}={value} is an address, and a run keeps its state in folders; give a folder of this machine (a mounted one "
            "will do) and copy it afterwards"
        )


def tidy(config: DictConfig) -> None:
    """Make paths what verl and `pathlib` take them for, in place: `~` expanded, models without a slash at the end, which verl
    refuses by an assertion in a worker."""
    for key in (*WRITTEN, *FILES, *MODELS):
        given = OmegaConf.select(config, key, default=None)
        if isinstance(given, str):
            better = _tidied(given, key in MODELS)
        elif OmegaConf.is_list(given):
            better = [_tidied(each, key in MODELS) for each in given]
        else:
            continue
        if better != given:
            OmegaConf.update(config, key, better)


def _tidied(path: str, folder: bool) -> str:
    if path == "~" or path.startswith("~/"):
        path = os.path.expanduser(path)
    return path.rstrip("/") or path if folder else path
