"""What a run leaves behind for the study: `runs/NAME/record.json`, beside the run's own files.

A record is the only thing that says whether a run is done. It is written when the run has ended, in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from unify_posttrain.config import PACKAGE, conf_dir
from unify_posttrain.redaction import redact_text, redacted, redacted_overrides
from unify_posttrain.runs.files import write_text
from unify_posttrain.study.grid import Run
from unify_posttrain.study.processes import FINISHED, Ended
from unify_posttrain.text import one_line

logger = logging.getLogger(__name__)

RECORD, LOG, METRICS = "record.json", "train.log", "metrics.jsonl"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
PACKAGES = ("unify-posttrain", "verl", "torch", "transformers", "ray")


@dataclass(frozen=True)
class Record:
    """One ended run. `seconds` is wall-clock of the whole command, `final_step` the last step in its metrics."""

    name: str
    task: str
    algorithm: str
    seed: int
    learning_rate: float | None
    purpose: str
    overrides: list[str]
    command: list[str]
    settings: dict[str, Any]  # effective values of the study's `equal` keys
    versions: dict[str, str | None]
    source: str  # digest of the package's code and conf/, which a version under development does not tell
    started: str
    seconds: float
    status: str
    exit_code: int | None
    final_step: int | None
    log: str  # relative to the study's folder
    log_tail: list[str]  # empty for a finished run

    @property
    def finished(self) -> bool:
        return self.status == FINISHED

    def is_of(self, run: Run) -> bool:
        """Whether this run had the very overrides that `run` has today; secrets, which no record holds, may differ."""
        return self.overrides == redacted_overrides(run.overrides)


def make_record(
    run: Run, ended: Ended, *, folder: Path, settings: dict[str, Any], source: str, final_step: int | None, tail_lines: int
) -> Record:
    """The record of a run that has just ended; not written yet."""
    return Record(
        name=run.name,
        task=run.task,
        algorithm=run.algorithm,
        seed=run.seed,
        learning_rate=run.learning_rate,
        purpose=run.purpose,
        overrides=redacted_overrides(run.overrides),
        command=redacted_overrides(ended.job.command),
        settings=redacted(settings),
        versions=versions(),
        source=source,
        started=ended.started,
        seconds=ended.seconds,
        status=ended.status,
        exit_code=ended.exit_code,
        final_step=final_step,
        log=os.path.relpath(ended.job.log, folder),
        log_tail=[] if ended.status == FINISHED else tail(ended.job.log, tail_lines),
    )


def record_path(folder: Path, name: str) -> Path:
    return folder / "runs" / name / RECORD


def write_record(folder: Path, record: Record) -> None:
    """Replace the run's record in one step."""
    write_text(record_path(folder, record.name), json.dumps(asdict(record), indent=2) + "\n")


def read_record(folder: Path, name: str) -> Record | None:
    """The record of a run; None if there is none, or none that can be read (the run is then made again)."""
    path = record_path(folder, name)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Record(**{field.name: values[field.name] for field in fields(Record)})
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        logger.warning("%s is not a record of this release (%s); the run counts as not made", path, error)
        return None


def read_records(folder: Path) -> list[Record]:
    """All records below `folder`, by name."""
    names = sorted(path.parent.name for path in (folder / "runs").glob(f"*/{RECORD}"))
    return [record for record in (read_record(folder, name) for name in names) if record is not None]


def tail(log: Path, lines: int) -> list[str]:
    """The last lines of a log, without blank ones and colours, each a line of visible characters without secrets."""
    if not log.exists() or lines < 1:
        return []
    text = COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace")).splitlines()
    return [one_line(redact_text(line.rstrip())) for line in text if line.strip()][-lines:]


def versions() -> dict[str, str | None]:
    """Versions of what computes; None if a package is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def source_digest(roots: Sequence[Path] | None = None) -> str:
    """Digest over the names and contents of the package's modules and of conf/."""
    digest = hashlib.sha256()
    for root in (PACKAGE, conf_dir()) if roots is None else roots:
        for path in sorted(path for suffix in ("*.py", "*.yaml") for path in root.rglob(suffix)):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:12]
