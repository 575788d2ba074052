"""Which run a start is: the one that the folder holds, going on; a branch of it; or a new one. What is not its own is set aside.

Decided once, before Ray starts and under the folder's lock (`runs.lock`):

* a resume from the newest checkpoint goes on with the run's id;
* a resume from an earlier checkpoint, from another folder's or in a copy of the folder is a new run that branches off there;
* without a checkpoint (`trainer.resume_mode=disable`, or nothing to resume from) a new run begins.

Checkpoints in the folder that are not on the way of the run move to `RUN/earlier/ID/checkpoints` (if they are kept outside of
the run folder: to `earlier/ID` beside them), with the logs that belong to them. `RUN/earlier/ID` is a run folder like any other.
Nothing is deleted.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from itertools import count
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from unify_posttrain.runs import run_logs, state
from unify_posttrain.runs.files import write_text
from unify_posttrain.runs.lineage import Lineage, lineage_of, read_run, write_run, writer_of

logger = logging.getLogger(__name__)

EARLIER = "earlier"
CONFIG, ENVIRONMENT = "config.yaml", "environment.json"
LINES = ("metrics.jsonl", "gate.jsonl")  # cut back by a resume; so a branch leaves a copy
SHOWN = ("samples", "rollouts", "tensorboard")  # a file per step, where the settings put them by default
UNNAMED = "unnamed"  # stands for the id of a run of before there were ids
TRACKER = "latest_checkpointed_iteration.txt"  # verl's, which other tools read


class Logs(Enum):
    """What becomes of the lines in the folder: they are the run's own; it begins with some of them; or they are another run's."""

    STAY = "stay"
    COPY = "copy"
    LEAVE = "leave"


@dataclass(frozen=True)
class Plan:
    """What a start does.

    Attributes:
        folder: the checkpoint that it goes on from; None: it begins.
        lineage: of the run that it is.
        leaves: checkpoints that are set aside.
        logs: what becomes of the lines in the folder.
    """

    folder: Path | None
    lineage: Lineage
    leaves: Sequence[Path]
    logs: Logs


def plan(config: DictConfig) -> Plan:
    """Look, and change nothing.

    Raises:
        ValueError: see :func:`state.resume_folder` and :func:`lineage.read_run`.
    """
    checkpoints, record = Path(config.trainer.default_local_dir), read_run(config.trainer.run_dir)
    folder, there = state.resume_folder(config), state.step_folders(checkpoints)
    if folder is None:
        disabled = config.trainer.resume_mode == "disable"
        leaves = there if disabled else [each for each in there if state.is_complete(each)]
        return Plan(None, Lineage.beginning(), leaves, Logs.LEAVE if leaves or disabled else Logs.STAY)
    writer, step = writer_of(folder), state.step_of(folder)
    if folder.resolve().parent != checkpoints.resolve():
        return Plan(folder, lineage_of(folder).branch(writer, step), there, Logs.LEAVE)
    before = None if record is None else Lineage.from_state(record["lineage"])
    way = before if before is not None and before.holds(writer, step) else lineage_of(folder)
    complete = [each for each in there if state.is_complete(each)]
    chosen_earlier = config.trainer.resume_mode == "resume_path" and any(
        state.step_of(each) > step and way.holds_folder(each) for each in complete
    )
    goes_on = way.run is not None and not chosen_earlier and not _is_copy(Path(config.trainer.run_dir), record)
    lineage = way if goes_on else way.branch(writer, step)
    leaves = [each for each in complete if not lineage.holds_folder(each)]
    logs = Logs.LEAVE if before is not None and way is not before else Logs.COPY if chosen_earlier else Logs.STAY
    return Plan(folder, lineage, leaves, logs)


def begin(config: DictConfig) -> Lineage:
    """Make the run folder that of this start: its id, and nothing in it that another run trained.

    Returns:
        the lineage of the run, which its checkpoints carry.

    Raises:
        ValueError: see :func:`plan`.
    """
    run_dir, checkpoints = Path(config.trainer.run_dir), Path(config.trainer.default_local_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    made, record = plan(config), read_run(run_dir)
    before = None if record is None else Lineage.from_state(record["lineage"])
    # Until all of it is moved, the record names the run that it belongs to: a start that is killed here leaves nothing unnamed.
    _set_aside(run_dir, checkpoints, made, before)
    _correct_tracker(checkpoints, made.folder)
    if record is None or before != made.lineage:
        write_run(run_dir, _record(run_dir, made))
    elif record["folder"] != str(run_dir.resolve()):
        write_run(run_dir, {**record, "folder": str(run_dir.resolve())})  # it was moved
    return made.lineage


def note_tracker(run_dir: Path, name: str, run: str) -> None:
    """Remember the id that a tracker has given the run."""
    record = read_run(run_dir)
    if record is not None:
        write_run(run_dir, {**record, "trackers": {**record["trackers"], name: run}})


def _record(run_dir: Path, made: Plan) -> dict[str, Any]:
    past = made.lineage.segments[-2] if len(made.lineage.segments) > 1 else None
    return {
        "run": made.lineage.run,
        "lineage": made.lineage.state,
        "parent": None if past is None else {"run": past.run, "step": past.until, "checkpoint": str(made.folder)},
        "folder": str(run_dir.resolve()),
        "begun": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "trackers": {},
    }


def _is_copy(run_dir: Path, record: dict[str, Any] | None) -> bool:
    """Whether the folder is a copy of one that still holds the run; two folders must not go on with the same id."""
    if record is None or record["folder"] == str(run_dir.resolve()):
        return False
    original = read_run(record["folder"])
    return original is not None and original["run"] == record["run"]


def _set_aside(run_dir: Path, checkpoints: Path, made: Plan, before: Lineage | None) -> None:
    """Move what is not the run's own, under the name of the run that it belongs to."""
    groups: dict[str, list[Path]] = {}
    for folder in made.leaves:
        owner = before.run if before is not None and before.holds_folder(folder) else writer_of(folder)
        groups.setdefault(owner or UNNAMED, []).append(folder)
    logged = made.logs is not Logs.STAY and any(run_logs.has_lines(run_dir / name) for name in LINES)
    owner = before.run if before is not None else next(iter(groups), UNNAMED)
    if logged:
        groups.setdefault(owner or UNNAMED, [])
    inside = checkpoints.resolve().is_relative_to(run_dir.resolve())
    for name, folders in groups.items():
        label = next(each for each in _labels(name) if not any((base / EARLIER / each).exists() for base in (run_dir, checkpoints)))
        place = run_dir / EARLIER / label
        kept = place / "checkpoints" if inside else checkpoints / EARLIER / label
        place.mkdir(parents=True)
        for folder in folders:
            kept.mkdir(parents=True, exist_ok=True)
            os.rename(folder, kept / folder.name)
        if folders:
            logger.warning(
                "%s held checkpoints of another run (%s). They are set aside in %s, no longer count for "
                "trainer.max_actor_ckpt_to_keep, and go on with trainer.resume_mode=resume_path trainer.resume_from_path=%s",
                checkpoints, ", ".join(folder.name for folder in folders), kept, kept / folders[-1].name,
            )  # fmt: skip
        _copy_settings(run_dir, place, kept)
        if logged and name == (owner or UNNAMED):
            _take_logs(run_dir, place, made)


def _labels(name: str) -> Iterator[str]:
    """NAME, NAME-2, NAME-3, …"""
    return (name if number == 1 else f"{name}-{number}" for number in count(1))


def _copy_settings(run_dir: Path, place: Path, checkpoints: Path) -> None:
    """Make what is set aside a run folder: its configuration, which names its new place."""
    if (run_dir / CONFIG).is_file():
        config = OmegaConf.load(run_dir / CONFIG)
        OmegaConf.update(config, "trainer.run_dir", str(place.resolve()), force_add=True)
        OmegaConf.update(config, "trainer.default_local_dir", str(checkpoints.resolve()), force_add=True)
        write_text(place / CONFIG, OmegaConf.to_yaml(config))
    if (run_dir / ENVIRONMENT).is_file():
        shutil.copy2(run_dir / ENVIRONMENT, place)


def _take_logs(run_dir: Path, place: Path, made: Plan) -> None:
    """Give what is set aside its lines and samples; a branch keeps those of the steps before it (a resume cuts its lines)."""
    leaves = made.logs is Logs.LEAVE
    for name in LINES:
        lines = run_logs.guarded_lines(run_dir / name)  # those that a process which ended had not yet put back, too
        run_logs.release(run_dir / name)
        if lines:
            run_logs.replace(place / name, lines)
        if leaves:
            (run_dir / name).unlink(missing_ok=True)
        elif lines:
            run_logs.replace(run_dir / name, lines)
    for folder in (run_dir / name for name in SHOWN if (run_dir / name).is_dir()):
        if leaves or made.folder is None:
            os.rename(folder, place / folder.name)
            continue
        last = state.step_of(made.folder)
        for path in (path for path in folder.glob("*.jsonl") if path.stem.isdigit() and int(path.stem) > last):
            (place / folder.name).mkdir(exist_ok=True)
            os.rename(path, place / folder.name / path.name)


def _correct_tracker(checkpoints: Path, folder: Path | None) -> None:
    """Let verl's file name the checkpoint that the run goes on from, if it is there: other tools trust it."""
    tracker = checkpoints / TRACKER
    if folder is None or folder.resolve().parent != checkpoints.resolve():
        tracker.unlink(missing_ok=True)
    elif not tracker.is_file() or tracker.read_text(encoding="utf-8").strip() != str(state.step_of(folder)):
        write_text(tracker, str(state.step_of(folder)))
