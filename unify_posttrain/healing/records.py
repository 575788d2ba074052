"""What says that a step is done: its record, written when the step begins and when it has ended, each in one go."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

from unify_posttrain.healing.plan import Healing, Step
from unify_posttrain.redaction import redacted_overrides
from unify_posttrain.runs.files import write_text
from unify_posttrain.study.processes import FINISHED

STARTED = "started"


@dataclass(frozen=True)
class Done:
    """The record of a step: STEPS/NAME.json."""

    name: str
    digest: str
    overrides: list[str]
    status: str
    exit_code: int | None
    started: str
    seconds: float
    source: str


def record_path(healing: Healing, name: str) -> Path:
    """Of a step."""
    return healing.folder / "steps" / f"{name}.json"


def read_done(healing: Healing) -> dict[str, Done]:
    """All records in the folder by name."""
    found = {}
    for path in sorted((healing.folder / "steps").glob("*.json")):
        done = _read(path)
        if done is not None:
            found[done.name] = done
    return found


def finished(healing: Healing, step: Step) -> bool:
    """Whether a step has finished with today's command, behind steps with today's commands."""
    done = _read(record_path(healing, step.name))
    return done is not None and done.status == FINISHED and done.digest == step.digest


def begin(healing: Healing, step: Step) -> None:
    """Note that a step begins. What a training of other settings has left in its folder is deleted; one of the same settings goes
    on at its last checkpoint."""
    before = _read(record_path(healing, step.name))
    if step.module == "train" and before is not None and before.digest != step.digest:
        shutil.rmtree(healing.run(step.name), ignore_errors=True)
    write(healing, Done(step.name, step.digest, redacted_overrides(step.overrides), STARTED, None, "", 0.0, ""))


def write(healing: Healing, done: Done) -> None:
    """Replace the record of a step in one go."""
    write_text(record_path(healing, done.name), json.dumps(asdict(done), indent=1) + "\n")


def _read(path: Path) -> Done | None:
    try:
        return Done(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError):  # none, or one that a kill or another version has left: the step is run again
        return None
