"""JSON-lines files of a run (`metrics.jsonl`, `gate.jsonl`) that survive a kill and a resume."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


def append(path: Path, entry: dict[str, Any]) -> None:
    """Add one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def guarded_lines(path: Path) -> list[str]:
    """The lines of a file that is about to be truncated; they are kept beside it until `release`, whatever happens in between."""
    kept = _kept(path)
    lines = complete_lines(kept if kept.exists() else path)
    if lines:
        replace(kept, lines)
    return lines


def has_lines(path: Path) -> bool:
    """Whether a file, or what is kept beside it, has anything to lose."""
    return any(each.is_file() and each.stat().st_size > 0 for each in (path, _kept(path)))


def release(path: Path) -> None:
    """The file holds again what it should."""
    _kept(path).unlink(missing_ok=True)


def replace(path: Path, lines: list[str]) -> None:
    """Write a file anew: a reader, also after a kill, finds the old lines or the new."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    os.replace(temporary, path)


def _kept(path: Path) -> Path:
    return path.with_name(f".{path.name}.kept")


def complete_lines(path: Path) -> list[str]:
    """The lines of a file that are whole JSON; the last one may have been cut by a kill."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            json.loads(line)
        except json.JSONDecodeError:
            logger.warning("%s: a line that was cut short is dropped", path)
            continue
        lines.append(line)
    return lines


def up_to(lines: list[str], step: int) -> list[str]:
    """Lines of the steps that a run resumed at `step` keeps; a run from the start (step 0) keeps none."""
    return [line for line in lines if step and json.loads(line)["step"] <= step]


class ResumableLogs:
    """The two files of a run that a resume cuts back: verl's file logger starts an empty file, ours appends.

    Args:
        run_dir: their folder; the lines of `metrics.jsonl` are read here, before the logger truncates it.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.metrics, self.gate = Path(run_dir) / "metrics.jsonl", Path(run_dir) / "gate.jsonl"
        self._before = guarded_lines(self.metrics)

    def kept(self, step: int, line: Path | None) -> list[dict[str, Any]]:
        """Entries of the steps that a run resumed at `step` keeps.

        Args:
            line: that step's entry in its checkpoint, in case the process before had no time to log it.
        """
        entries = [json.loads(text) for text in up_to(self._before, step)]
        if line is not None and line.exists() and not any(each["step"] == step for each in entries):
            entries.append(json.loads(line.read_text(encoding="utf-8")))
        return entries

    def restore(self, step: int, entries: Iterable[dict[str, Any]], file: BinaryIO | None) -> None:
        """Write entries into the logger's open file (None: there is none), and cut the gate's file back."""
        for entry in entries if file is not None else ():
            file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        release(self.metrics)
        replace(self.gate, up_to(complete_lines(self.gate), step))

    def append_gate(self, record: dict[str, Any]) -> None:
        """A step's line of `gate.jsonl`."""
        append(self.gate, record)
