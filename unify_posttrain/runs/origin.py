"""What wrote a checkpoint: backend, verl, torch. Backends write the same files; one torch cannot read what another has pickled."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

ORIGIN = "written_by"  # of unify_state.json


def origin(config: DictConfig) -> dict[str, str | None]:
    """Of the checkpoints that this process writes."""
    return {"backend": config.trainer.backend, "verl": _version("verl"), "torch": _version("torch")}


def check_origin(state: Mapping[str, Any] | None, folder: Path) -> None:
    """
    Raises:
        ValueError: another minor release of torch pickled the shards; names both and the remedy. Checkpoints from before this was
            noted are read as they are.
    """
    written = ((state or {}).get(ORIGIN) or {}).get("torch")
    here = _version("torch")
    if written and here and _minor(written) != _minor(here):
        raise ValueError(
            f"{folder} was written with torch {written}, this is torch {here}, which cannot read its shards. Resume in the old "
            f"environment; or export the weights there (python -m unify_posttrain.export {_run_of(folder)} step="
            f"{folder.name.removeprefix('global_step_')}) and start a run from them (actor_rollout_ref.model.path), without the "
            "optimizer's moments, which are lost"
        )


def _run_of(folder: Path) -> str:
    return str(folder.parent.parent) if folder.parent.name == "checkpoints" else "RUN"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _minor(release: str) -> tuple[str, ...]:
    return tuple(release.split("+")[0].split(".")[:2])
