"""Checkpoints that can be trusted: our own state as JSON, a marker that says "complete", and which one to resume from.

Layout beside verl's files, all written to a temporary name and renamed::

    global_step_N/actor/…, data.pt        verl's
    global_step_N/unify_state.json        what this package must remember
    global_step_N/unify_phase.json        where a run of several phases stands, and whether the step has been validated
    global_step_N/unify_line.json         the step's metrics, in case the process ends before it logs them
    global_step_N/unify_complete.json     names, sizes and checksums of all other files; written last

A folder without a marker, or one whose files do not match it, was cut short or damaged and is never resumed from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.paths import is_remote
from unify_posttrain.runs.continuity import refusal, settings
from unify_posttrain.runs.lineage import STATE_FILE, Lineage, lineage_in

logger = logging.getLogger(__name__)

STATE, MARKER = STATE_FILE, "unify_complete.json"
PHASE = "unify_phase.json"  # rewritten after the marker, once the step has been validated; so not in it
LINE = "unify_line.json"  # the step's line of metrics.jsonl
FORMAT = 1
READERS = 8  # files checked at a time; zlib and the disk work without the interpreter's lock
CHUNK = 1 << 22
DEEPEST = 100  # nesting of what is written as JSON
_FOLDER = re.compile(r"global_step_(\d+)$")


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader finds the old content or the new, never a part.

    Raises:
        TypeError: something in it cannot be said in JSON; names the place and the type.
    """
    try:
        text = json.dumps(content, indent=1, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"{path.name}: {_unsayable(content, '') or error}") from error
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _unsayable(content: Any, where: str, depth: int = 0) -> str | None:
    """The first place of a content that JSON cannot say; None if there is none."""
    if depth > DEEPEST:
        return f"{where[:80]}… is nested more than {DEEPEST} deep"
    if isinstance(content, Mapping):
        wrong = next((key for key in content if not isinstance(key, str | int | float | bool | None)), None)
        if wrong is not None:
            return f"a key of {where or 'it'} is {type(wrong).__name__}, which JSON cannot say"
        parts: Iterable[tuple[str, Any]] = ((f"{where}.{key}".lstrip("."), value) for key, value in content.items())
    elif isinstance(content, list | tuple):
        parts = ((f"{where}[{number}]", value) for number, value in enumerate(content))
    elif content is None or isinstance(content, str | int | float | bool):
        return None
    else:
        return f"{where} is {type(content).__name__}, which JSON cannot say"
    return next(filter(None, (_unsayable(value, name, depth + 1) for name, value in parts)), None)


def mark_complete(folder: Path) -> None:
    """Flush every file of a checkpoint to disk and record its size and checksum."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in (MARKER, PHASE)]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    with ThreadPoolExecutor(READERS) as pool:
        sums = pool.map(checksum, files)
        record = {str(p.relative_to(folder)): [p.stat().st_size, crc] for p, crc in zip(files, sums, strict=True)}
    write_json(folder / MARKER, {"format": FORMAT, "files": record})


def checksum(path: Path) -> int:
    """CRC-32 of a file: enough to notice damage, and as fast as the disk."""
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


@lru_cache(maxsize=1024)
def _checksum_once(path: Path, mtime_ns: int) -> int:
    """A start asks three times whether a checkpoint is sound; gigabytes are read once."""
    return checksum(path)


def damage(folder: Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None: no marker (writing was cut short), or a file that is not as it was written.

    Args:
        folder: a `global_step_N`.
        contents: compare checksums too, which reads every file; sizes alone show what was truncated.
    """
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        files = [(folder / name, size, crc) for name, (size, crc) in marker["files"].items()]
    except FileNotFoundError:
        return "the run was stopped while writing it"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MARKER} cannot be read"
    for path, size, _ in files:
        if not path.is_file():
            return f"{path.name} is missing"
        if path.stat().st_size != size:
            return f"{path.name} has {path.stat().st_size} bytes, was written with {size}"
    if contents:
        with ThreadPoolExecutor(READERS) as pool:
            found = pool.map(_checksum_once, *zip(*((path, path.stat().st_mtime_ns) for path, _, _ in files), strict=True))
            for (path, _, crc), now in zip(files, found, strict=True):
                if now != crc:
                    return f"the content of {path.name} has changed since it was written"
    return None


def is_complete(folder: Path) -> bool:
    """True if the marker is there and every file that it names has the size that it names."""
    return damage(folder, contents=False) is None


def step_of(folder: Path) -> int:
    match = _FOLDER.search(folder.name)
    if match is None:
        raise ValueError(f"trainer.resume_from_path={folder}: the folder must be called global_step_N")
    return int(match.group(1))


def newest_complete(checkpoints: Path, lineage: Lineage | None = None, contents: bool = True) -> Path | None:
    """The undamaged checkpoint with the highest step, or None. Says which newer ones were passed over.

    Args:
        lineage: of the run that asks, whose checkpoints alone count; None: nothing is known of it, and all count.
        contents: see :func:`damage`.
    """
    for folder in reversed(step_folders(checkpoints)):
        fault = damage(folder, contents=False)
        if fault is None and lineage is not None and not lineage.holds_folder(folder):
            fault = "another run wrote it"
        fault = fault or (damage(folder) if contents else None)
        if fault is None:
            return folder
        logger.warning("checkpoint %s is not usable (%s) and is passed over", folder, fault)
    return None


def newest_of(config: DictConfig, contents: bool = True) -> Path | None:
    """The newest undamaged checkpoint of the run that the folders of a configuration hold, or None."""
    lineage = lineage_in(OmegaConf.select(config, "trainer.run_dir"))
    return newest_complete(Path(config.trainer.default_local_dir), lineage, contents)


def step_folders(checkpoints: Path) -> list[Path]:
    """The `global_step_N` folders, complete or not, in the order of their steps."""
    folders = [path for path in checkpoints.glob("global_step_*") if _FOLDER.search(path.name) and path.is_dir()]
    return sorted(folders, key=step_of)


def keep_newest(checkpoints: Path, number: int | None, lineage: Lineage | None = None) -> None:
    """Delete all but the newest `number` checkpoints (None or 0: keep all). To be called once a new one is complete, never before:
    what is deleted to make room for a checkpoint that then fails would be lost. Those of other runs neither count nor go."""
    complete = [folder for folder in step_folders(checkpoints) if is_complete(folder)]
    complete = [folder for folder in complete if lineage is None or lineage.holds_folder(folder)]
    for folder in complete[:-number] if number else []:
        logger.info("checkpoint %s is deleted: trainer.max_actor_ckpt_to_keep=%d", folder, number)
        shutil.rmtree(folder)


def resume_folder(config: DictConfig) -> Path | None:
    """What `trainer.resume_mode` (disable, auto, resume_path) resolves to.

    Raises:
        ValueError: an unknown mode, or a path that is not a complete checkpoint.
    """
    mode = config.trainer.resume_mode
    if mode == "disable":
        return None
    if mode == "auto":
        return newest_of(config)
    if mode != "resume_path":
        raise ValueError(f"trainer.resume_mode={mode!r}; choose one of disable, auto, resume_path")
    folder = Path(str(config.trainer.resume_from_path))
    step_of(folder)
    if not folder.is_dir():
        raise ValueError(f"trainer.resume_from_path={folder} does not exist")
    ours = (folder / STATE).exists() or (folder / MARKER).exists()  # plain verl's checkpoints have neither, and are accepted
    fault = damage(folder) if ours else None
    if fault is not None:
        raise ValueError(f"trainer.resume_from_path={folder} is not usable: {fault}; choose an earlier one")
    return folder


def nothing_left(config: DictConfig, steps: int | None) -> str | None:
    """What to tell a user whose run has reached its last step; None if there is something to train, or `steps` is not known yet.

    Raises:
        ValueError: see :func:`resume_folder`.
    """
    folder = None if steps is None else resume_folder(config)
    if folder is None or step_of(folder) < steps or awaits_validation(folder, config, steps):
        return None
    return (
        f"{folder} is the last of {steps} steps: nothing to train. Raise trainer.total_training_steps to go on, or set another "
        "trainer.experiment_name."
    )


def awaits_validation(folder: Path, config: DictConfig, steps: int) -> bool:
    """Whether the run ended between writing this checkpoint and the validation that was due after its step."""
    step, frequency = step_of(folder), config.trainer.test_freq
    if frequency <= 0 or (step % frequency and step < steps) or not (folder / PHASE).exists():
        return False
    return json.loads((folder / PHASE).read_text(encoding="utf-8")).get("validated") is False


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
    """What must not change between a run and its continuation, and is compared by content or by a sum. `runs.continuity` has the
    rest, which checkpoints of before it existed do not carry."""
    files = config.data.train_files
    files = [files] if isinstance(files, str) else list(files)
    return {
        "fusion.algorithm": config.fusion.algorithm,
        "fusion.seed": config.fusion.seed,
        "data.train_files": [file if is_remote(file) else fingerprint(Path(file)) for file in files],
        "data.train_batch_size": config.data.train_batch_size,
        "actor_rollout_ref.rollout.n": config.actor_rollout_ref.rollout.n,
        "actor_rollout_ref.model.path": str(config.actor_rollout_ref.model.path).rstrip("/"),
        "ranks": config.trainer.nnodes * config.trainer.n_gpus_per_node,
    }


def check_identity(state: Mapping[str, Any] | None, config: DictConfig, folder: Path) -> None:
    """Refuse to continue one run with another's settings.

    Raises:
        ValueError: names the first setting that differs.
    """
    if state is None:
        return
    found = ((key, state["identity"].get(key), value) for key, value in identity(config).items())
    different = next((each for each in found if each[1] != each[2]), None) or refusal(state, settings(config))
    if different is not None:
        key, before, value = different
        raise ValueError(
            f"{folder} was written with {key}={before}, this run has {value}; set it back, give the run its own "
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
