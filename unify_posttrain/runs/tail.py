"""Following a file of JSON lines that another part of the program, or another process, writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """A growing file of JSON lines, read from where it was left; what it held before this object is read once it changes.

    A run that is resumed truncates its files and writes the lines it keeps: `fresh` tells that the file began anew.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = self._stat()
        self._offset = 0
        self._tail = b""  # the last line read, to see whether the file is still the same
        self._begun = self._stamp is None

    def _stat(self) -> tuple[int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """(fresh, entries): whether what was read before is void, and the new whole lines. Lines that are no JSON are skipped."""
        stamp = self._stat()
        if stamp is None or (stamp == self._stamp and not self._begun):
            return False, []
        self._begun = True
        try:
            with open(self.path, "rb") as file:
                fresh = not self._continues(file, stamp[0])
                file.seek(0 if fresh else self._offset)
                self._offset = 0 if fresh else self._offset
                data = file.read()
        except OSError:
            return False, []
        whole = data[: data.rfind(b"\n") + 1]  # the last line may be being written
        if whole:
            self._offset += len(whole)
            self._tail = whole[whole.rfind(b"\n", 0, -1) + 1 :]
        elif fresh:
            self._tail = b""
        return fresh, [entry for line in whole.splitlines() if (entry := _entry(line)) is not None]

    def _continues(self, file: Any, size: int) -> bool:
        if size < self._offset:
            return False
        file.seek(self._offset - len(self._tail))
        return file.read(len(self._tail)) == self._tail


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except ValueError:  # cut by a kill
        return None
    return entry if isinstance(entry, dict) and isinstance(entry.get("step"), int) else None
