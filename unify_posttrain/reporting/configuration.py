"""Configuration as rows of text: what differs from the defaults, and between runs."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from unify_posttrain.config import GROUPS, compose_config
from unify_posttrain.reporting.run import Run

logger = logging.getLogger(__name__)

CHOICE = re.compile(rf"(?:{'|'.join(GROUPS)})=\w+")
COPY = "actor_rollout_ref.actor.fusion."  # what workers see of the node `fusion`
CLASS = "_target_"
ABSENT = "—"


@dataclass(frozen=True)
class Row:
    """A setting: its text in each run, in the defaults (one run only; None if unknown), and whether it stands out."""

    key: str
    values: tuple[str, ...]
    default: str | None
    differs: bool


def rows(runs: Sequence[Run]) -> list[Row]:
    """All settings of the runs, by key. One run is compared with the defaults of its groups, several with each other."""
    flat = [dict(flatten(run.config)) for run in runs]
    default = defaults(runs[0]) if len(runs) == 1 else None
    found = []
    for key in sorted(set().union(*flat)):
        values = tuple(settings.get(key, ABSENT) for settings in flat)
        if default is not None:
            expected = default.get(key, ABSENT)
            found.append(Row(key, values, expected, _differs([values[0], expected])))
        else:
            named = [_nameless(key, value, run) for value, run in zip(values, runs, strict=True)]
            found.append(Row(key, values, None, len(set(named)) > 1))
    return found


def flatten(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value as text) of every leaf; plain lists are leaves, copies and class names are left out."""
    if isinstance(node, list) and any(isinstance(item, Mapping) for item in node):
        node = dict(enumerate(node))
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            yield from flatten(value, f"{prefix}.{name}" if prefix else str(name))
    elif prefix and not prefix.startswith(COPY) and not prefix.endswith(CLASS):
        yield prefix, node if isinstance(node, str) else json.dumps(node, ensure_ascii=False, default=str)


def defaults(run: Run) -> dict[str, str] | None:
    """The settings that the run's choices of algorithm, model, task and hardware have by themselves; None if they are not known."""
    choices = [override for override in run.overrides if CHOICE.fullmatch(override)]
    if not run.overrides or not run.config:
        return None
    name = run.setting("trainer.experiment_name")
    try:
        config = compose_config([*choices, *([f"trainer.experiment_name={name}"] if re.fullmatch(r"[\w-]+", str(name)) else [])])
        return dict(flatten(OmegaConf.to_container(config, resolve=True)))
    except (ValueError, OSError, ImportError, HydraException, OmegaConfBaseException) as error:
        logger.info("the defaults of %s cannot be composed: %s", run.label, error)
        return None


def _differs(values: Sequence[str]) -> bool:
    """Whether texts mean different things: 1e-4 and 0.0001 do not, nor do a path and the same one made absolute."""
    first, second = values
    if first == second:
        return False
    try:
        return float(first) != float(second)
    except ValueError:
        return not ("/" in second and first.endswith("/" + second))


def _nameless(key: str, value: str, run: Run) -> str:
    """A value without the run's own name, which its paths contain. A bare word stays: runs are often called as their algorithm."""
    name = str(run.setting("trainer.experiment_name", run.folder.name))
    if "/" not in value and not key.endswith("experiment_name"):
        return value
    return re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", "RUN", value)
