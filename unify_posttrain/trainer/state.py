"""Checkpoints that can be trusted: our own state as JSON, a marker that says "complete", and which one to resume from.

Layout beside verl's files, all written to a temporary name and renamed::

    global_step_N/actor/…, data.pt        verl's
    global_step_N/unify_state.json        what this package must remember
    global_step_N/unify_phase.json        where a run of several phases stands
    global_step_N/unify_complete.json     names and sizes of all other files; written last

A folder without a marker, or one whose files do not match it, was cut short and is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

logger = logging.getLogger(__name__)

STATE, MARKER = "unify_state.json", "unify_complete.json"
PHASE = "unify_phase.json"  # rewritten after the marker, once the step has been validated; so not in it
FORMAT = 1
_FOLDER = re.compile(r"global_step_(\d+)$")


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader finds the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def mark_complete(folder: Path) -> None:
    """Flush every file of a checkpoint to disk and record it."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (MARKER, PHASE):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            files[str(path.relative_to(folder))] = path.stat().st_size
    write_json(folder / MARKER, {"format": FORMAT, "files": files})


def is_complete(folder: Path) -> bool:
    """True if the marker is there and every file that it names has the size that it names."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return all((folder / name).stat().st_size == size for name, size in marker["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def step_of(folder: Path) -> int:
    match = _FOLDER.search(folder.name)
    if match is None:
        raise ValueError(f"trainer.resume_from_path={folder}: the folder must be called global_step_N")
    return int(match.group(1))


def newest_complete(checkpoints: Path) -> Path | None:
    """The complete checkpoint with the highest step, or None. Says which newer ones were passed over."""
    folders = [path for path in checkpoints.glob("global_step_*") if _FOLDER.search(path.name) and path.is_dir()]
    for folder in sorted(folders, key=step_of, reverse=True):
        if is_complete(folder):
            return folder
        logger.warning("checkpoint %s is incomplete (the run was stopped while writing it) and is passed over", folder)
    return None


def resume_folder(config: DictConfig) -> Path | None:
    """What `trainer.resume_mode` (disable, auto, resume_path) resolves to.

    Raises:
        ValueError: an unknown mode, or a path that is not a complete checkpoint.
    """
    mode = config.trainer.resume_mode
    if mode == "disable":
        return None
    if mode == "auto":
        return newest_complete(Path(config.trainer.default_local_dir))
    if mode != "resume_path":
        raise ValueError(f"trainer.resume_mode={mode!r}; choose one of disable, auto, resume_path")
    folder = Path(str(config.trainer.resume_from_path))
    step_of(folder)
    if not folder.is_dir():
        raise ValueError(f"trainer.resume_from_path={folder} does not exist")
    ours = (folder / STATE).exists() or (folder / MARKER).exists()  # plain verl's checkpoints have neither, and are accepted
    if ours and not is_complete(folder):
        raise ValueError(f"trainer.resume_from_path={folder} is incomplete; choose an earlier one")
    return folder


def nothing_left(config: DictConfig, steps: int | None) -> str | None:
    """What to tell a user whose run has reached its last step; None if there is something to train, or `steps` is not known yet.

    Raises:
        ValueError: see :func:`resume_folder`.
    """
    folder = None if steps is None else resume_folder(config)
    if folder is None or step_of(folder) < steps:
        return None
    return (
        f"{folder} is the last of {steps} steps: nothing to train. Raise trainer.total_training_steps to go on, or set another "
        "trainer.experiment_name."
    )


def read_state(folder: Path) -> dict[str, Any] | None:
    """Our state of a checkpoint, or None if plain verl wrote it.

    Raises:
        ValueError: written by a newer version of this package.
    """
    path = folder / STATE
    if not path.exists():
        return None
    state = json.loads(path.read_text(encoding="utf-8"))
    if state.get("format", 0) > FORMAT:
        raise ValueError(f"{path} was written by a newer unify_posttrain (format {state['format']}); upgrade to resume from it")
    return state


def identity(config: DictConfig) -> dict[str, Any]:
    """What must not change between a run and its continuation."""
    files = config.data.train_files
    files = [files] if isinstance(files, str) else list(files)
    return {
        "fusion.algorithm": config.fusion.algorithm,
        "fusion.seed": config.fusion.seed,
        "data.train_files": [fingerprint(Path(file)) for file in files],
        "data.train_batch_size": config.data.train_batch_size,
        "actor_rollout_ref.rollout.n": config.actor_rollout_ref.rollout.n,
        "actor_rollout_ref.model.path": str(config.actor_rollout_ref.model.path),
        "ranks": config.trainer.nnodes * config.trainer.n_gpus_per_node,
    }


def check_identity(state: Mapping[str, Any] | None, config: DictConfig, folder: Path) -> None:
    """Refuse to continue one run with another's settings.

    Raises:
        ValueError: names the first setting that differs.
    """
    if state is None:
        return
    for key, value in identity(config).items():
        before = state["identity"].get(key)
        if before != value:
            raise ValueError(
                f"{folder} was written with {key}={before}, this run has {value}; give the run its own "
                "trainer.experiment_name, or start afresh with trainer.resume_mode=disable"
            )


def fingerprint(path: Path, edge: int = 1 << 20) -> str:
    """Size and a hash of a file's first and last megabyte: cheap for gigabytes, and changes when the data does."""
    size = path.stat().st_size
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        digest.update(file.read(edge))
        file.seek(max(0, size - edge))
        digest.update(file.read(edge))
    return f"{size}:{digest.hexdigest()[:16]}"
