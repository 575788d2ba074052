"""What an analysis has worked out already: a JSON line per matrix, beside the settings that it was made with.

    FOLDER/settings.json     written when all guards have passed
    FOLDER/matrices.jsonl    appended matrix by matrix, each flushed to disk

A kill may cut the last line short; it is dropped, and that matrix is worked out anew.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.runs.files import write_text
from unify_posttrain.untrusted.documents import BrokenDocumentError, DocumentError, parse

logger = logging.getLogger(__name__)

SETTINGS, MATRICES = "settings.json", "matrices.jsonl"


class Records:
    """The matrices of one analysis.

    Args:
        folder: made if missing.
        settings: JSON-ready; what the numbers depend on.
        overwrite: delete what was made with other settings instead of refusing.

    Raises:
        ValueError: the folder holds an analysis with other settings, or other files.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], overwrite: bool) -> None:
        self.folder, self.path = folder, folder / MATRICES
        wanted = json.loads(json.dumps(settings))
        differs = self._difference(wanted)
        if differs is not None:
            if not overwrite:
                raise ValueError(f"output={folder} {differs}; give another output=…, or overwrite=true to replace that analysis")
            logger.warning("%s: an analysis with other settings is deleted (overwrite=true)", folder)
            shutil.rmtree(folder)
        self.fresh = not (folder / SETTINGS).is_file()
        if self.fresh:
            write_text(folder / SETTINGS, json.dumps(wanted, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
        self.done: dict[str, dict[str, Any]] = {}
        self._read()

    def _difference(self, wanted: Mapping[str, Any]) -> str | None:
        """Why the folder cannot be continued, as the end of a sentence."""
        if not (self.folder / SETTINGS).is_file():
            others = [path.name for path in self.folder.glob("*") if path.name not in ("hydra",)] if self.folder.is_dir() else []
            if others:
                # Only an analysis is ever deleted, so that a mistyped output costs nothing.
                raise ValueError(f"output={self.folder} holds other files than an analysis ({others[0]}); give another output=…")
            return None
        try:
            before = parse((self.folder / SETTINGS).read_bytes())
        except DocumentError:
            return f"holds an analysis whose {SETTINGS} cannot be read"
        keys = [key for key in {**wanted, **before} if wanted.get(key) != before.get(key)]
        return f"holds an analysis with {keys[0]}={before.get(keys[0])}, which is now {wanted.get(keys[0])}" if keys else None

    def _read(self) -> None:
        if not self.path.is_file():
            return
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                entry = parse(line)
            except BrokenDocumentError as error:
                raise ValueError(f"{self.path}, line {number}: {error}; delete the folder to begin anew") from error
            self.done[entry["matrix"]] = entry
        if len(whole) < len(content):
            logger.warning("%s: the last line was cut short and is dropped", self.path)
            with open(self.path, "r+b") as file:
                file.truncate(len(whole))

    def append(self, entry: Mapping[str, Any]) -> None:
        """Keep a matrix; it is on disk when this returns."""
        with open(self.path, "ab") as file:
            file.write((json.dumps(entry, ensure_ascii=False, allow_nan=False) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
        self.done[str(entry["matrix"])] = dict(entry)

    def ordered(self, names: tuple[str, ...]) -> Iterator[dict[str, Any]]:
        """Entries in the order of `names`, in whatever order they were worked out."""
        return (self.done[name] for name in names)
