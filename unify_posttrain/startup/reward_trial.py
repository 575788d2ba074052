"""The reward function and its manager, tried before Ray: loaded, and called on rows of the data with their own targets."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.experience.targets import TARGET_COLUMNS, targets_of
from unify_posttrain.rewards.calling import Call
from unify_posttrain.rewards.protection import NODE, OWN, Protection
from unify_posttrain.rewards.trial import rows_to_try, try_reward
from unify_posttrain.startup.reward_checks import CLASSIFIER

logger = logging.getLogger(__name__)

MANAGER = "reward.reward_manager"
ONE_TURN = {"num_turns": 2, "rollout_reward_scores": {}}  # what verl's naive manager adds to extra_info
LEGACY = ("prime", "batch")  # names that verl has for a path of rewards that its trainer no longer takes


def check_reward_function(config: DictConfig, splits: Sequence[Any] = ()) -> None:
    """Load the reward manager and the reward function, and call the function on rows of each split.

    Args:
        config: of the run.
        splits: datasets of `datasets`, without any the function is only loaded.

    Raises:
        ValueError: an unknown manager; a function that cannot be loaded or called, or that returns what cannot be read; names key,
            value and remedy.
    """
    _check_manager(config)
    node = OmegaConf.to_container(config.reward.custom_reward_function, resolve=True)
    protection = Protection.from_node(OmegaConf.to_container(config.reward.protection, resolve=True))
    calls: list[Call] = []
    taken: set[str] = set()
    if not config.reward.reward_model.enable and CLASSIFIER not in str(node["path"]):  # those ask a model that does not run yet
        for frame in splits:
            calls += [_call(frame[row]) for row in rows_to_try(frame["data_source"], protection.trial_rows)]
    for frame in splits:
        taken.update(frame.column_names)
    try_reward(node, protection, calls, taken)


def _call(row: Mapping[str, Any]) -> Call:
    """The arguments of a call that scores a row's own target, or nothing where it has none."""
    return {
        "data_source": row["data_source"],
        "solution_str": _target(row),
        "ground_truth": row["reward_model"]["ground_truth"],
        "extra_info": {**(row.get("extra_info") or {}), **ONE_TURN},
    }


def _target(row: Mapping[str, Any]) -> str:
    if not any(column in row for column in TARGET_COLUMNS):
        return ""
    try:
        return next((target.texts[-1] for target in targets_of(row, int(row["row_id"]))), "")
    except ValueError:  # whether targets are needed at all is another check's business
        return ""


def _check_manager(config: DictConfig) -> None:
    manager = config.reward.reward_manager
    if manager.source == "importlib":
        _check_own_manager(manager)
        return
    if manager.source != "register":
        raise ValueError(f"{MANAGER}.source={manager.source} is unknown; choose one of register, importlib")
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER

    if manager.name not in REWARD_MANAGER:
        old = ", which verl's old rewards knew" if manager.name in LEGACY else ""
        raise ValueError(f"{MANAGER}.name={manager.name} is unknown{old}; choose one of {', '.join(sorted(REWARD_MANAGER))}")
    if manager.name == "remote" and config.reward.protection.process:
        logger.info("%s.name=remote starts processes of its own beside those of %s", MANAGER, NODE)


def _check_own_manager(manager: DictConfig) -> None:
    path = None if manager.module is None else manager.module.path
    if path is None:
        raise ValueError(f"{MANAGER}.module.path is not set, but {MANAGER}.source=importlib; set it to the file of {manager.name}")
    if str(path).startswith(OWN):
        return
    from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
    from verl.utils.import_utils import load_extern_object

    try:
        found = load_extern_object(module_path=str(path), object_name=str(manager.name))
    except (Exception, SystemExit) as error:  # a file of a user may do anything when it is imported
        cause = error.__cause__ or error
        raise ValueError(
            f"{MANAGER}.module.path={path}: {manager.name} cannot be loaded ({type(cause).__name__}: {cause}); check path and name"
        ) from error
    if not (inspect.isclass(found) and issubclass(found, RewardManagerBase)):
        raise ValueError(f"{MANAGER}.name={manager.name} of {path} is no reward manager: derive it from verl's RewardManagerBase")
