"""A name means its conf file: the files behind `algorithm=NAME`, and the phases of a run composed from theirs.

A phase `{algorithm: dapo, steps: 100, fusion: {clip: none}}` trains what the same command line composes to with `algorithm=dapo`,
changed by the phase's own keys. What holds for a whole run (`RUN_WIDE`) is the run's. Anything else that a phase's file sets and a
phase cannot have (a reward manager, say) stays as the run has it and is recorded, so that the dry run can say so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from unify_posttrain.typos import did_you_mean, dotted_keys, nearest

KEYS = ("algorithm", "steps", "stall", "lr", "fusion", "actor")
RUN_WIDE = (
    "fusion.seed",
    "data.train_batch_size",
    "data.max_prompt_length",
    "data.max_response_length",
    "actor_rollout_ref.rollout.n",
    "trainer.total_training_steps",
)
RUN_WIDE_FUSION = (
    *("algorithm", "seed", "group_size", "horizon", "adv_estimator"),
    *("trim_padding", "share_prompts", "first_step_is_current", "engine_log_probs_are_old", "skip_zero_advantage"),
)
ACTOR_NUMBERS = ("clip_ratio_low", "clip_ratio_high", "entropy_coeff", "use_kl_loss", "kl_loss_coef", "kl_loss_type")
OPTIM = (
    "lr",
    "lr_warmup_steps",
    "lr_warmup_steps_ratio",
    "lr_scheduler_type",
    "min_lr_ratio",
    "num_cycles",
    "weight_decay",
    "betas",
)
CARRIED = (  # keys of an algorithm's file that a phase takes over
    "fusion",
    "algorithm.norm_adv_by_std_in_grpo",
    "algorithm.filter_groups",
    "actor_rollout_ref.actor.ppo_mini_batch_size",
    "actor_rollout_ref.actor.grad_clip",
    *(f"actor_rollout_ref.actor.{name}" for name in ACTOR_NUMBERS),
    *(f"actor_rollout_ref.actor.optim.{name}" for name in OPTIM),
)
Compose = Callable[[Sequence[str]], DictConfig]


def file_chain(folder: Path, name: str) -> list[Path]:
    """The files that a choice of a config group is made of, the basic one first: what its `defaults` list names, then itself.

    Args:
        folder: of the group, e.g. conf/algorithm.
        name: the choice.
    """
    path = folder / f"{name}.yaml"
    defaults = OmegaConf.load(path).get("defaults") or ()
    bases = [each for each in defaults if isinstance(each, str) and each != "_self_" and not each.startswith("/")]
    return [*(file for base in bases for file in file_chain(folder, base)), path]


def leaves(node: Any, prefix: str = "") -> Iterator[str]:
    """Dotted keys of the values of a configuration file."""
    for key in node:
        name = f"{prefix}{key}"
        value = OmegaConf.to_container(node)[key] if isinstance(node, DictConfig) else node[key]
        if isinstance(value, Mapping) and value:
            yield from leaves(node[key], f"{name}.")
        else:
            yield name


def expand_phases(config: DictConfig, overrides: Sequence[str], compose: Compose, folder: Path) -> None:
    """Put into every entry of `fusion.phases` what its name composes to; in place. Nothing happens without phases, or twice.

    Args:
        config: composed from `overrides`.
        overrides: the command line.
        compose: overrides -> configuration, with the same primary file.
        folder: conf/algorithm.

    Raises:
        ValueError: an entry that is no mapping, an unknown algorithm or key, or a key that holds for a whole run.
    """
    entries = OmegaConf.select(config, "fusion.phases")
    if not entries:
        return
    raw = OmegaConf.to_container(entries, resolve=True)
    expanded = [_expand(number, entry, config, overrides, compose, folder) for number, entry in enumerate(raw)]
    with open_dict(config):
        config.fusion.phases = expanded
        # Whether there is a reference policy is asked of the run; its own terms are those of its phases.
        if any(entry["actor"]["use_kl_loss"] for entry in expanded):
            config.actor_rollout_ref.actor.use_kl_loss = True


def _expand(
    number: int, entry: Any, config: DictConfig, overrides: Sequence[str], compose: Compose, folder: Path
) -> dict[str, Any]:
    path = f"fusion.phases[{number}]"
    if not isinstance(entry, Mapping):
        raise ValueError(f"{path}={entry!r} must be a mapping with the keys {', '.join(KEYS)}")
    if "kept" in entry:
        return dict(entry)  # composed before, e.g. read from a run's config.yaml
    for key in entry:
        if key not in KEYS:
            raise ValueError(f"{path}.{key} is unknown; known keys: {', '.join(KEYS)}")
    name = entry.get("algorithm")
    known = sorted(each.stem for each in folder.glob("*.yaml"))
    if name not in known:
        raise ValueError(f"{path}.algorithm={name!r}; choose one of {', '.join(known)}")
    own = [each for each in overrides if not each.lstrip("+~").startswith(("algorithm=", "fusion.phases"))]
    pinned = [f"{key}={_text(OmegaConf.select(config, key))}" for key in RUN_WIDE]
    whole = compose([*own, f"algorithm={name}", *pinned])
    _change(whole.fusion, entry.get("fusion") or {}, f"{path}.fusion", RUN_WIDE_FUSION)
    _change(whole.actor_rollout_ref.actor, entry.get("actor") or {}, f"{path}.actor", ("fusion",))
    actor = whole.actor_rollout_ref.actor
    if entry.get("lr") is not None:
        actor.optim.lr = entry["lr"]
    fusion = OmegaConf.to_container(whole.fusion, resolve=True)
    return {
        **{key: entry[key] for key in ("algorithm", "steps", "stall", "lr") if key in entry},
        "fusion": fusion,
        "actor": {key: actor[key] for key in ACTOR_NUMBERS},
        "optim": {key: OmegaConf.to_container(actor.optim, resolve=True).get(key) for key in OPTIM if key in actor.optim},
        "mini_batches": max(1, whole.data.train_batch_size // actor.ppo_mini_batch_size),
        "grad_clip": actor.grad_clip,
        "filter_groups": OmegaConf.to_container(whole.algorithm.filter_groups, resolve=True),
        "kept": list(_kept(config, name, folder)),
    }


def _change(node: DictConfig, changes: Mapping[str, Any], path: str, fixed: Sequence[str]) -> None:
    """Merge a phase's own keys into what its file composes to."""
    for key in changes:
        if key in fixed:
            raise ValueError(f"{path}.{key}={changes[key]}: it holds for the whole run; set it outside of the phases")
    OmegaConf.set_struct(node, True)
    try:
        node.merge_with(changes)
    except OmegaConfBaseException as error:
        key = str(error.full_key).removeprefix("actor_rollout_ref.").partition(".")[2]
        near = did_you_mean([f"{path}.{each}" for each in nearest(key, list(dotted_keys(OmegaConf.to_container(node))))])
        raise ValueError(f"{path}.{key} cannot be set: {str(error.msg).splitlines()[0]}{near}") from None


def _kept(config: DictConfig, name: str, folder: Path) -> Iterator[list[Any]]:
    """[key, the file's value, the run's] where a file asks for what a phase cannot have and the run does not have."""
    files = [OmegaConf.load(path) for path in file_chain(folder, name)]
    for file in files:
        file.pop("defaults", None)
    whole = config.copy()
    OmegaConf.set_struct(whole, False)
    merged = OmegaConf.merge(whole, *files)
    for key in dict.fromkeys(key for file in files for key in leaves(file)):
        if any(key == carried or key.startswith(f"{carried}.") for carried in CARRIED):
            continue
        wanted, has = (OmegaConf.select(each, key) for each in (merged, config))
        if wanted != has:
            yield [key, wanted, has]


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
