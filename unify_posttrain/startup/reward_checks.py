"""Start-up checks of the `reward` node: the length penalty of verl's dapo manager, and the reward classifier."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.rewards.classifier import NODE, read_options
from unify_posttrain.rewards.loading import check_dispatch, forbidden_path, refusal
from unify_posttrain.rewards.math import VERSIONS
from unify_posttrain.rewards.protection import Protection, is_own
from unify_posttrain.startup.memory_plan import reward_model_shares

CLASSIFIER = "unify_posttrain.workers.reward_classifier"
MATH = "unify_posttrain.rewards.math"
PENALTY = "reward.reward_kwargs.overlong_buffer_cfg"


def check_reward(config: DictConfig) -> None:
    """Raises:
    ValueError: a length penalty that is unbounded, never applies or is read by nobody; a reward classifier that cannot be
        served as configured; a reward model that shares accelerators and would not give its memory back.
    """
    _check_overlong_penalty(config)
    _check_version(config)
    Protection.from_node(OmegaConf.to_container(config.reward.protection, resolve=True))
    path = str(config.reward.custom_reward_function.path)
    forbidden = forbidden_path(path)
    if forbidden is not None:
        raise ValueError(
            f"reward.custom_reward_function.path={path}: {refusal(forbidden)}, which grades mathematics alike (version 5)"
        )
    _check_reward_model(config)
    if str(config.reward.custom_reward_function.path).endswith(CLASSIFIER):
        _check_classifier(config)
    _check_turns(config)


def check_sources(config: DictConfig, sources: Iterable[str]) -> None:
    """Raises:
    ValueError: verl's own dispatcher would send a data source to a grader that evaluates or runs model text. One that is
        reached from a function of the user's is refused when that is called.
    """
    check_dispatch(config.reward.custom_reward_function, sources)


def _check_reward_model(config: DictConfig) -> None:
    """A function that asks verl's reward model is handed its address and tokenizer, which no other process can be."""
    function = config.reward.custom_reward_function
    if config.reward.reward_model.enable and config.reward.protection.process and not is_own(function):
        raise ValueError(
            "reward.reward_model.enable=true hands the reward function a tokenizer, which a process of its own cannot be given; "
            "set reward.protection.process=false"
        )


def _check_version(config: DictConfig) -> None:
    version, function = config.data.get("reward_impl_version"), config.reward.custom_reward_function
    math = str(function.path).endswith(MATH) and function.name == "compute_score"
    if version is not None and not math:
        raise ValueError(
            f"data.reward_impl_version={version}: the reward of this task ({function.name}) has no versions; remove the key"
        )
    if not math:
        return
    options = function.get("reward_kwargs") or {}
    missing = [key for key in ("version", "workers", "timeout_seconds", "memory_mb") if options.get(key) is None]
    if missing:
        raise ValueError(
            f"reward.custom_reward_function.reward_kwargs.{missing[0]} is not set: give version (0 to 7), "
            "workers, timeout_seconds and memory_mb, as task=openr1_math does"
        )
    if isinstance(options.version, bool) or options.version not in VERSIONS:
        raise ValueError(f"data.reward_impl_version={options.version!r} is unknown; choose one of {', '.join(map(str, VERSIONS))}")
    for key in ("workers", "timeout_seconds", "memory_mb"):
        if not options[key] > 0:
            raise ValueError(f"reward.custom_reward_function.reward_kwargs.{key}={options[key]} must be above 0")


def _check_overlong_penalty(config: DictConfig) -> None:
    """verl adds min(-(len - (max - buffer)) / buffer * factor, 0) for a response of len tokens (DAPO, arXiv 2503.14476, eq. 13). It
    has no floor of its own: -factor is reached at len = max, which is the floor only if no response is longer than max."""
    manager = config.reward.reward_manager.name
    penalty = OmegaConf.select(config, PENALTY)
    if penalty is None:
        return
    if manager not in ("dapo", "DAPORewardManager"):
        if penalty.get("enable"):
            raise ValueError(
                f"{PENALTY}.enable=true, but reward.reward_manager.name={manager} reads no length penalty; set it to "
                f"dapo, or {PENALTY}.enable=false"
            )
        return
    longest = OmegaConf.select(config, "reward.reward_kwargs.max_resp_len")
    unset = [f"{PENALTY}.{key}" for key in ("enable", "len", "penalty_factor", "log") if penalty.get(key) is None]
    unset += ["reward.reward_kwargs.max_resp_len"] if longest is None else []
    if unset:
        raise ValueError(f"reward.reward_manager.name=dapo: {', '.join(unset)} not set; set it")
    if not 0 < penalty.len < longest:
        raise ValueError(f"{PENALTY}.len={penalty.len} must lie between 0 and reward.reward_kwargs.max_resp_len={longest}")
    if penalty.penalty_factor <= 0:
        raise ValueError(f"{PENALTY}.penalty_factor={penalty.penalty_factor} must be above 0; {PENALTY}.enable=false turns it off")
    if longest < config.data.max_response_length:
        raise ValueError(
            f"reward.reward_kwargs.max_resp_len={longest} is below data.max_response_length={config.data.max_response_length}: "
            f"the penalty of longer responses would exceed penalty_factor={penalty.penalty_factor}; set it to "
            "${data.max_response_length}"
        )


def _check_turns(config: DictConfig) -> None:
    """A reward model on the accelerators of the policy takes turns with the engine, so both must give their memory back."""
    if config.reward.reward_model.enable and OmegaConf.is_missing(config.reward.reward_model.rollout, "name"):
        raise ValueError("reward.reward_model.enable=true, but reward.reward_model.rollout.name is not set; set it to vllm")
    if not reward_model_shares(config):
        return
    for key in ("reward.reward_model.rollout.free_cache_engine", "actor_rollout_ref.rollout.free_cache_engine"):
        if not OmegaConf.select(config, key):
            raise ValueError(
                f"{key}=false: the reward model shares the accelerators with the engine, and the two take turns in their memory; "
                "set it to true, or give the reward model accelerators of its own: reward.reward_model.enable_resource_pool=true"
            )


def _check_classifier(config: DictConfig) -> None:
    options: dict[str, Any] = OmegaConf.to_container(
        OmegaConf.select(config, NODE, default=None) or OmegaConf.create(), resolve=True
    )
    settings, _ = read_options(options)
    manager = config.reward.reward_manager
    if (manager.source, manager.name) != ("importlib", "PromptRewardManager"):
        raise ValueError(
            f"reward.reward_manager.name={manager.name} (source {manager.source}) does not pass the prompt's text to the reward "
            f"classifier; set source=importlib, name=PromptRewardManager, module.path=pkg://{CLASSIFIER}, as task=tldr does"
        )
    looks_local = settings.model_path.startswith((".", "/", "~")) or settings.model_path.count("/") != 1
    if looks_local and not Path(settings.model_path).is_dir():
        raise ValueError(f"{NODE}.model_path={settings.model_path} does not exist; check the path")
    served = config.reward.reward_model
    if served.enable and served.model_path != settings.model_path:
        raise ValueError(
            f"reward.reward_model.model_path={served.model_path}, which verl serves, and {NODE}.model_path={settings.model_path} "
            "differ; set the first and leave the second ${reward.reward_model.model_path}"
        )
    if served.enable and config.actor_rollout_ref.rollout.name == "hf":
        raise ValueError(
            "reward.reward_model.enable=true serves the classifier with vLLM on GPUs, which hardware=cpu lacks; set it to false"
        )
