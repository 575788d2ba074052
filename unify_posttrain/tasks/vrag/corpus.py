"""A corpus of pages: a folder with `pages.jsonl` and images, read with care, since others may have made it.

    {"page_id": "report_3", "image": "pages/report_3.png", "text": "…", "file_name": "report.pdf", "page": 3}

A page's id is the name of its image without the last suffix. Images are opened under the folder only, in few formats, and never
beyond a number of pixels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from unify_posttrain.preparation.store import replace_file
from unify_posttrain.tasks.vrag.views import Rect, Size
from unify_posttrain.untrusted.documents import STRICT, DocumentError, parse
from unify_posttrain.untrusted.folders import linked_elsewhere, member

PAGES = "pages.jsonl"
FORMATS = ("PNG", "JPEG", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class PageError(ValueError):
    """An image of a page that cannot be shown; names the file."""


@dataclass(frozen=True)
class PageRecord:
    """A line of `pages.jsonl`.

    Attributes:
        page_id: the name of the image without its last suffix.
        image: path of the image, relative to the corpus.
        text: what stands on the page, for retrieval; may be empty.
        file_name: of the document.
        page: its number in the document, from 1; None if that is not known.
    """

    page_id: str
    image: str
    text: str
    file_name: str
    page: int | None


def page_id_of(path: str) -> str:
    """The id of the page whose image has this path.

    >>> page_id_of("img/annual.report_3.jpg")
    'annual.report_3'
    """
    return PurePosixPath(path.replace("\\", "/")).stem


def gold_ids(file_name: str, pages: Iterable[int]) -> list[str]:
    """The ids of a document's pages.

    >>> gold_ids("annual.report.pdf", [3])
    ['annual.report_3']
    """
    return [f"{page_id_of(file_name)}_{int(page)}" for page in pages]


class Corpus:
    """The pages of a folder, sorted by id.

    Args:
        root: the folder.
        pages: of it.
        largest_px: pixels of an image beyond which it is not opened.
    """

    def __init__(self, root: Path, pages: Sequence[PageRecord], largest_px: int) -> None:
        self.root, self.largest_px = root, largest_px
        self.pages = sorted(pages, key=lambda page: page.page_id)
        self.by_id = {page.page_id: page for page in self.pages}

    @classmethod
    def read(cls, root: Path, largest_px: int, key: str = "environment.retriever.corpus") -> Corpus:
        """The corpus of a folder.

        Args:
            root: the folder.
            largest_px: see the class.
            key: of the configuration that names it.

        Raises:
            ValueError: no such folder, or a line that is no page; names key, file and line.
        """
        path = Path(root).expanduser() / PAGES
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise ValueError(
                f"{key}={root}: {PAGES} cannot be read ({error.strerror}); make a corpus: python -m unify_posttrain.prepare "
                "task=vrag"
            ) from error
        pages: dict[str, PageRecord] = {}
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            page = _record(path.parent, line, where)
            if page.page_id in pages:
                raise ValueError(f"{where}: page_id={page.page_id!r} stands there twice; every page needs a name of its own")
            pages[page.page_id] = page
        if not pages:
            raise ValueError(f"{key}={root}: {PAGES} holds no page; make the corpus anew")
        return cls(path.parent, list(pages.values()), largest_px)

    def path(self, page_id: str) -> Path:
        """The image of a page.

        Raises:
            PageError: an unknown page, or a link that leads out of the corpus.
        """
        if page_id not in self.by_id:
            raise PageError(f"page {page_id[:80]!r} is none of the corpus {self.root}")
        path = self.root / self.by_id[page_id].image
        if linked_elsewhere(self.root, path) is not None:
            raise PageError(f"{path} is a link that leads out of the corpus {self.root}; put the file itself there")
        return path


def within(root: Path, name: str) -> Path:
    """The file that a name means, which a server may have said: under the root, or none.

    Args:
        root: of the corpus.
        name: a path relative to it, or an absolute one.

    Raises:
        PageError: it leads out of the root.
    """
    try:
        base = root.resolve()
        found = (base / name).resolve()
        inside = found.is_relative_to(base) and found != base
    except (OSError, ValueError):  # a NUL, a name without end
        inside = False
    if not inside or found.suffix.lower() not in SUFFIXES:
        raise PageError(f"{name[:200]!r} is no image of the corpus {root}")
    return found


def image_size(path: Path, largest_px: int) -> Size:
    """Width and height, without reading the pixels; PageError if it cannot be shown."""
    with _opened(path, largest_px) as image:
        size: Size = image.size
    return size


def check_pixels(path: Path, largest_px: int) -> None:
    """Read an image as a whole; PageError if its data is damaged."""
    with _opened(path, largest_px) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise PageError(f"{path} cannot be read ({error}); make the page anew") from error


def cut_image(path: Path, rect: Rect, size: Size, largest_px: int) -> Any:
    """A part of an image in RGB, resized with bicubic interpolation.

    Args:
        path: of the image.
        rect: of its pixels.
        size: width and height of what is returned.
        largest_px: pixels beyond which it is not opened.

    Raises:
        PageError: it cannot be opened or read.
    """
    from PIL import Image

    with _opened(path, largest_px) as image:
        try:
            return image.convert("RGB").crop(rect).resize(size, Image.Resampling.BICUBIC)
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged data
            raise PageError(f"{path} cannot be read ({error}); make the page anew") from error


def _opened(path: Path, largest_px: int) -> Any:
    from PIL import Image

    try:
        image = Image.open(path, formats=FORMATS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PageError(f"{path} cannot be opened as {', '.join(FORMATS)} ({error})") from error
    if image.width * image.height > largest_px:
        image.close()
        raise PageError(
            f"{path} has {image.width}x{image.height} pixels, more than environment.largest_page_px={largest_px}; store it smaller"
        )
    return image


def _record(root: Path, line: bytes, where: str) -> PageRecord:
    try:
        found = parse(line, STRICT)
    except DocumentError as error:
        raise ValueError(f"{where}: {error}") from error
    keys = PageRecord.__dataclass_fields__
    if not isinstance(found, dict) or not keys.keys() <= set(found):
        raise ValueError(
            f"{where}: must be an object with the keys {', '.join(keys)}, not {line[:80].decode('utf-8', 'replace')!r}"
        )
    for key in ("page_id", "image", "text", "file_name"):
        if not isinstance(found[key], str) or (key != "text" and not found[key]):
            raise ValueError(f"{where}: {key}={str(found[key])[:80]!r} must be text")
    if found["page"] is not None and type(found["page"]) is not int:
        raise ValueError(f"{where}: page={str(found['page'])[:80]!r} must be a number, from 1, or null")
    if found["page_id"] != page_id_of(found["image"]):
        raise ValueError(
            f"{where}: page_id={found['page_id']!r} must be the name of image={found['image']!r} without its last suffix"
        )
    image = member(root, found["image"], where)
    if image.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{where}: image={found['image']!r} must end with one of {', '.join(SUFFIXES)}")
    return PageRecord(**{key: found[key] for key in keys})


def write_pages(root: Path, pages: Iterable[PageRecord]) -> Path:
    """Write `pages.jsonl`, whole or not at all."""
    path = root / PAGES
    text = "".join(json.dumps(asdict(page), ensure_ascii=False) + "\n" for page in sorted(pages, key=lambda page: page.page_id))
    replace_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
