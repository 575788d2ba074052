"""Who wrote what: a run has an id, and a checkpoint says which run wrote it and what that run came from.

Step numbers alone do not tell: a folder may hold the checkpoints of an older run, with higher numbers than those of the run that is
being trained. The id stands in `RUN/unify_run.json` and in the `unify_state.json` of every checkpoint. A lineage is a list of
segments, oldest first: the steps that a run took until another one branched off, and last the run itself, without an end.

Folders of before there were ids go on working: their checkpoints have the id None.
"""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.runs.files import write_text

RUN_FILE = "unify_run.json"
STATE_FILE = "unify_state.json"
FORMAT = 1
ID_ALPHABET = string.ascii_lowercase + string.digits
ID_LENGTH = 21  # a tracker's run id, too; SwanLab's older releases take ids of this length and alphabet only


def new_id() -> str:
    """An id that no other run has."""
    return "".join(secrets.choice(ID_ALPHABET) for _ in range(ID_LENGTH))


@dataclass(frozen=True)
class Segment:
    """Steps of one run: all of them up to `until`; None: it is the run that goes on. The run None has no id."""

    run: str | None
    until: int | None = None

    def holds(self, run: str | None, step: int) -> bool:
        return run == self.run and (self.until is None or step <= self.until)


@dataclass(frozen=True)
class Lineage:
    """A run and what it came from, oldest first; the last segment is the run itself."""

    segments: tuple[Segment, ...]

    @property
    def run(self) -> str | None:
        return self.segments[-1].run

    def holds(self, run: str | None, step: int) -> bool:
        """Whether a checkpoint of that run and step lies on the way of this one."""
        return any(segment.holds(run, step) for segment in self.segments)

    def holds_folder(self, folder: Path) -> bool:
        """The same of a `global_step_N`."""
        return self.holds(writer_of(folder), int(folder.name.rpartition("_")[2]))

    def branch(self, run: str | None, step: int) -> Lineage:
        """The lineage of a new run that goes on from the checkpoint of that run and step.

        A checkpoint that is not on this way (a left-over) is all that the new run knows of its past.
        """
        past: list[Segment] = []
        for segment in self.segments:
            if segment.holds(run, step):
                return Lineage((*past, Segment(run, step), Segment(new_id())))
            past.append(segment)
        return Lineage((Segment(run, step), Segment(new_id())))

    @property
    def state(self) -> list[dict[str, Any]]:
        """JSON form."""
        return [{"run": segment.run, "until": segment.until} for segment in self.segments]

    @classmethod
    def from_state(cls, state: Sequence[Mapping[str, Any]]) -> Lineage:
        """Inverse of `state`."""
        return cls(tuple(Segment(each["run"], each["until"]) for each in state))

    @classmethod
    def beginning(cls) -> Lineage:
        """Of a run that comes from no other."""
        return cls((Segment(new_id()),))


def read_run(run_dir: Path | str | None) -> dict[str, Any] | None:
    """Content of `unify_run.json`; None for a folder without one.

    Raises:
        ValueError: written by a newer version, or not by us; names the file.
    """
    path = None if run_dir is None else Path(run_dir) / RUN_FILE
    if path is None or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        number, segments = record["format"], [(each["run"], each["until"]) for each in record["lineage"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); move it away to let the folder's checkpoints speak for themselves"
        ) from error
    if number > FORMAT:
        raise ValueError(f"{path} was written by a newer unify_posttrain (format {number}); upgrade to go on in this folder")
    if not segments:
        raise ValueError(f"{path} names no run; move it away to let the folder's checkpoints speak for themselves")
    return record


def lineage_in(run_dir: Path | str | None) -> Lineage | None:
    """The lineage that a run's folder records; None if it records none.

    Raises:
        ValueError: see :func:`read_run`.
    """
    record = read_run(run_dir)
    return None if record is None else Lineage.from_state(record["lineage"])


def write_run(run_dir: Path, record: Mapping[str, Any]) -> None:
    """Replace `unify_run.json`, so that a reader finds the old record or the new."""
    write_text(run_dir / RUN_FILE, json.dumps({"format": FORMAT, **record}, indent=1, sort_keys=True) + "\n")


def lineage_of(folder: Path) -> Lineage:
    """The lineage that a checkpoint carries; without one, that of a run without an id."""
    state = _state(folder)
    return Lineage.from_state(state["lineage"]) if state.get("lineage") else Lineage((Segment(state.get("run")),))


def writer_of(folder: Path) -> str | None:
    """Id of the run that wrote a checkpoint; None: older than ids, plain verl's, or cut short before its state was written."""
    return _state(folder).get("run")


def _state(folder: Path) -> Mapping[str, Any]:
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return state if isinstance(state, dict) else {}
