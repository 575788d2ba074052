"""Where a setting comes from: the file of `conf/` that set it last, or the command line."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.config import GROUPS, conf_dir
from unify_posttrain.phase_files import file_chain

REFERENCE = re.compile(r"\$\{([\w.]+)\}")  # the keys that an interpolation names
GIVEN_WAY = re.compile(r"^\$\{oc\.select:([\w.]+),")  # the key whose value a file takes over where something sets it
COMMAND_LINE, VERL = "command line", "verl"


class Provenance:
    """The sources of a composed configuration, in the order in which they are applied.

    Args:
        overrides: the command line.
    """

    def __init__(self, overrides: Sequence[str] = ()) -> None:
        given = {key.lstrip("+"): value for key, _, value in (each.partition("=") for each in overrides)}
        self.given = {key for key in given if key not in GROUPS}
        defaults = OmegaConf.load(conf_dir() / "train.yaml").defaults
        chosen = {key: each[key] for each in defaults if isinstance(each, DictConfig) for key in each}
        choices = {group: given.get(group, chosen[group]) for group in GROUPS}
        files = [conf_dir() / "train.yaml"]
        files += [file for group in GROUPS for file in file_chain(conf_dir() / group, choices[group])]
        self.files = [(file, OmegaConf.load(file)) for file in files]

    def source(self, key: str) -> str:
        """E.g. `conf/algorithm/hpt.yaml`, `command line`, `command line (trainer.switch_gate)`, or `verl`."""
        if self._overridden(key):
            return COMMAND_LINE
        for file, content in reversed(self.files):
            found, value = _look_up(content, key)
            if found:
                referred = [name for name in REFERENCE.findall(str(value)) if self._overridden(name)]
                if referred:
                    return f"{COMMAND_LINE} ({referred[0]})"
                taken_over = [(self.source(name), name) for name in GIVEN_WAY.findall(str(value))]
                return next((f"{source} ({name})" for source, name in taken_over if source != VERL), _name(file))
        return VERL

    def _overridden(self, key: str) -> bool:
        return any(key == given or key.startswith(f"{given}.") for given in self.given)


def _look_up(content: DictConfig, key: str) -> tuple[bool, Any]:
    """Whether a file sets a key, and to what, interpolations unresolved."""
    node: Any = content
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False, None
        raw = node._get_node(part)
        node = raw if isinstance(raw, DictConfig) and not raw._is_interpolation() and not raw._is_none() else _raw(raw)
    return True, node


def _raw(node: Any) -> Any:
    return node._value() if hasattr(node, "_value") else node


def _name(file: Path) -> str:
    return f"conf/{file.relative_to(conf_dir())}"
