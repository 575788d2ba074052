"""Which files of a folder are read. A folder by others names files: in an index of weights, in the header of a README, by links.

Only files of the folder itself are read and hashed. A name that leads out of it would let its author choose what a command reads
on this machine or fetches from another, while the manifest vouches for something else.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

logger = logging.getLogger(__name__)

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # of an address; `zip://a::b` is one, too, and so is a drive of Windows


def leads_out(name: str) -> bool:
    """Whether a name in a folder's file could mean something elsewhere: an address, an absolute path, a step upwards."""
    steps = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute() or name.startswith(("~", "\\"))
    return absolute or ".." in steps or "::" in name or _SCHEME.match(name) is not None or "\0" in name


def member(folder: Path, name: str, source: str) -> Path:
    """The file of a folder that a name in one of its files means.

    Args:
        folder: the folder.
        name: as it stands in `source`.
        source: which file names it, for the message.

    Raises:
        ValueError: the name leads out of the folder.
    """
    if leads_out(name):
        raise ValueError(f"{source} names {name!r}, which is outside of {folder}; only files of the folder are read")
    return folder / name


def linked_elsewhere(folder: Path, path: Path) -> Path | None:
    """Where a file of a folder really is, if a link leads out of the folder; None if it is in it.

    A snapshot of the hub's cache is made of links to the blobs beside it: they belong to it.
    """
    root, real = folder.resolve(), path.resolve()
    if real.is_relative_to(root):
        return None
    for above in (root, *root.parents):
        if above.parent.name == "snapshots" and real.is_relative_to(above.parent.parent / "blobs"):
            return None
    return real


def refuse_links(folder: Path, files: Iterable[Path], key: str) -> None:
    """ValueError if a link leads out of the folder that the key `key` names."""
    for path in files:
        elsewhere = linked_elsewhere(folder, path)
        if elsewhere is not None:
            raise ValueError(f"{key}: {path} is a link to {elsewhere}, outside of {folder}; put the file itself there")


def say_links(folder: Path, files: Iterable[Path]) -> None:
    """Warn of links that lead out of a folder; weights are large, and people link them."""
    for path in files:
        elsewhere = linked_elsewhere(folder, path)
        if elsewhere is not None:
            logger.warning("%s is a link to %s, outside of the folder; that file is read", path, elsewhere)
