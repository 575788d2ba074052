"""verl's configuration nodes that become dataclasses (`_target_`): a key that the class does not have ends the run, in a worker and
without a suggestion. Here it ends before Ray starts, with one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from unify_posttrain.backend.seams import adapted
from unify_posttrain.typos import did_you_mean, nearest

TARGET = "_target_"
BUILT = (
    "actor_rollout_ref.actor",
    "actor_rollout_ref.model",
    "actor_rollout_ref.rollout",
    "critic",
)  # by the workers; others are not


def check_nodes(config: DictConfig) -> None:
    """Compare every node that names a dataclass with its fields. Imports the classes, and with them verl and torch.

    Raises:
        ValueError: names the key that the class does not have, and the nearest one that it has.
    """
    built = adapted(config.copy())
    trees = {root: OmegaConf.to_container(OmegaConf.select(built, root)) for root in BUILT}
    for path, node in (each for root, tree in trees.items() for each in _nodes(tree, root)):
        if not is_dataclass(cls := get_class(str(node[TARGET]))):
            continue
        known = [field.name for field in fields(cls)]
        for key in node:
            if key != TARGET and key not in known:
                near = did_you_mean([f"{path}.{each}" for each in nearest(str(key), known)])
                raise ValueError(f"{path}.{key} is unknown to verl's {cls.__name__}{near}")


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if isinstance(node.get(TARGET), str):
            yield path, node
        for key, value in node.items():
            yield from _nodes(value, f"{path}.{key}")
