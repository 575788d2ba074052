"""Where the pictures of data rows lie. A row is a file of others: it names pictures beside it, and nothing else on this machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from unify_posttrain.text import one_line

INLINE = "data:image"
LOCAL = "file"


class PictureError(ValueError):
    """A picture that a row names and that a run does not open; names row, picture and remedy."""


SET_ROOT = "move it there, or set data.image_root to the folder that holds all pictures"


def placed_picture(picture: Any, root: Path, where: str, remedy: str = SET_ROOT) -> Any:
    """A picture of a row as verl opens it: its path, which rows give from `root` on, as an absolute one.

    Args:
        picture: {image: path or data URI, …}, the path alone, {bytes: …}, or an image that is in memory already.
        root: `data.image_root`, or the folder of the row's data file.
        where: the row, for errors.
        remedy: what to do about a picture that lies elsewhere.

    Raises:
        PictureError: no path, an address elsewhere, a path that leads out of `root`, or no file there.
    """
    if isinstance(picture, str):
        picture = {"image": picture}
    if not isinstance(picture, Mapping):
        return picture
    kept = {name: value for name, value in picture.items() if value is not None}
    if kept.get("bytes") is not None:
        return {name: value for name, value in kept.items() if name != "path"}  # the name that it had where it was written
    found = kept.pop("path", None) if "image" not in kept else kept["image"]
    if not isinstance(found, str):
        raise PictureError(f"{where}: a picture must be {{image: path}} or {{bytes: …}}, not {one_line(str(picture)[:80])!r}")
    return {**kept, "image": found if found.startswith(INLINE) else str(_path(found, root, where, remedy))}


def placed_parts(parts: Sequence[Mapping[str, Any]], root: Path, where: str) -> list[Mapping[str, Any]]:
    """The parts of a message, those that show a picture as `placed_picture` makes them. Parquet gives every part all keys."""
    kept = [{name: value for name, value in part.items() if value is not None} for part in parts]
    return [{"type": "image", **placed_picture(part, root, where)} if part.get("type") == "image" else part for part in kept]


def _path(found: str, root: Path, where: str, remedy: str) -> Path:
    shown, address = one_line(found[:200]), urlsplit(found)
    if len(address.scheme) > 1 and address.scheme != LOCAL:  # one letter is a drive
        raise PictureError(f"{where}: the picture {shown} is an address, which a run does not open; download it, and name the file")
    if address.scheme == LOCAL and address.netloc not in ("", "localhost"):
        raise PictureError(f"{where}: the picture {shown} is on another machine; copy it, and name the file")
    root = root.expanduser().resolve()
    path = (root / (unquote(address.path) if address.scheme == LOCAL else found)).resolve()
    if not path.is_relative_to(root):
        raise PictureError(f"{where}: the picture {shown} is outside of {root}; {remedy}")
    if not path.is_file():
        raise PictureError(f"{where}: the picture {shown} does not exist in {root}; {remedy}")
    return path
