"""Files that are whole or absent, and the manifest that tells whether they are up to date."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unify_posttrain.redaction import redacted

MANIFEST = "manifest.json"

_BLOCK = 1 << 20  # bytes hashed at a time: data files may be larger than memory


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary sibling and move it to ``path`` in one step."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` as JSON in one step, without its secrets; last of a folder's files, so that a crash before it makes the
    next call rebuild."""
    text = json.dumps(redacted(content), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def manifest_of(path: Path) -> Path:
    """The manifest that speaks of a data file: its own, `<stem>.manifest.json`, if there is one, else the folder's."""
    own = path.with_name(f"{path.stem}.{MANIFEST}")
    return own if own.is_file() else path.with_name(MANIFEST)


def sha256(path: Path) -> str:
    """Hex digest of a file, read in blocks."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def up_to_date(manifest_path: Path, identity: Mapping[str, Any], paths: Mapping[str, Path]) -> bool:
    """Whether the manifest holds ``identity`` and the digests of exactly these files."""
    try:
        manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
        sums = {path.name: sha256(path) for path in paths.values()}
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    return isinstance(manifest, dict) and {**redacted(identity), "sha256": sums}.items() <= manifest.items()
