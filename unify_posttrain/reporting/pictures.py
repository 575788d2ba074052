"""Pictures of prompts and of episodes on the page: made small, embedded, and opened in few folders only.

A line of a dump or of an evaluation is data of others: it names pictures, and must not choose what is read here and put on a page
that is handed on. So a picture is opened in the run's own folder, in the folders of its data if they lie below UNIFY_HOME, and in
folders that whoever makes the page has named. It is decoded from few formats, never beyond a number of pixels, and encoded anew.
What cannot be shown has a sentence in its place.
"""

from __future__ import annotations

import base64
import binascii
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unify_posttrain.paths import HOME_VARIABLE
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.thumbnails import Thumbnails, UnseenError

if TYPE_CHECKING:  # what reads pictures is imported by whoever shows some: a page of text needs no numpy
    from unify_posttrain.tasks.vrag.corpus import Corpus
    from unify_posttrain.tasks.vrag.views import Rect

OPTION = "--pictures"
INLINE = "data:image/"
UNKNOWN = "This picture is not in the dump."
GONE = "The file of this picture is not there any more."
UNREAD = "The corpus of this run cannot be read."
PAGES = "pages.jsonl"  # of a corpus
CORPUS = "environment.retriever.corpus"
DATA = ("data.train_files", "data.val_files")  # files, whose folders hold their pictures

Shown = dict[str, Any]  # {caption, picture: place in the page's thumbnails or null, note: why there is none, boxes: [[l, t, r, b]]}


@dataclass
class Pictures:
    """What a run or an evaluation shows.

    Attributes:
        thumbnails: of the page.
        folders: that pictures are opened in, resolved.
        corpus: folder of the pages that episodes name; None: there is none, or it may not be looked into.
        closed: folders of the configuration that are not looked into, in words.
    """

    thumbnails: Thumbnails
    folders: tuple[Path, ...] = ()
    corpus: Path | None = None
    closed: tuple[str, ...] = ()
    _pages: Corpus | str | None = None

    def of_prompt(self, references: Any) -> list[Shown]:
        """What a prompt shows.

        Args:
            references: `pictures` of a dumped row.
        """
        given = references if isinstance(references, list) else []
        return [self._shown(f"picture {number}", self._reference, each) for number, each in enumerate(given, start=1)]

    def of_episode(self, origins: Any) -> list[Shown]:
        """What was shown between the answers of an episode; a box on each image of which the next one shows a part.

        Args:
            origins: `shown_images` of a dumped row, [{page_id, rect}].
        """
        given = origins if isinstance(origins, list) else []
        shown = [self._shown(_caption(each), self._page, each) for each in given]
        for before, after, entry in zip(given, given[1:], shown, strict=False):
            box = box_of(before, after)
            if box is not None:
                entry["boxes"].append(box)
        return shown

    def _shown(self, caption: str, find: Callable[[Any], tuple[int | None, str | None]], given: Any) -> Shown:
        try:
            picture, note = find(given)
        except UnseenError as error:
            picture, note = None, str(error)
        return {"caption": caption, "picture": picture, "note": note, "boxes": []}

    def _reference(self, given: Any) -> tuple[int | None, str | None]:
        image = given.get("image") if isinstance(given, Mapping) else given
        if not isinstance(image, str):
            raise UnseenError(UNKNOWN)
        if image.startswith(INLINE):
            content = _decoded(image)
            return self.thumbnails.place(sha256(content).digest(), lambda: self._cut(io.BytesIO(content), None))
        path = self._allowed(Path(image.removeprefix("file://")))
        return self.thumbnails.place((path, None), lambda: self._cut(path, None))

    def _page(self, given: Any) -> tuple[int | None, str | None]:
        from unify_posttrain.tasks.vrag.corpus import PageError

        page, rect = _origin(given)
        if page is None:
            raise UnseenError(UNKNOWN)
        corpus = self._corpus()
        try:
            path = corpus.path(page)
        except PageError:
            raise UnseenError("This page is not in the corpus that was found.") from None
        if not path.is_file():  # a pipe would be waited for
            raise UnseenError(GONE)
        return self.thumbnails.place((path, rect), lambda: self._cut(path, rect))

    def _corpus(self) -> Corpus:
        from unify_posttrain.tasks.vrag.corpus import Corpus

        if self._pages is None:
            if self.corpus is None:
                self._pages = f"{' '.join(self.closed)} Give the folder of the pages with {OPTION}.".strip()
            else:
                try:
                    there = (self.corpus / PAGES).is_file()
                    self._pages = Corpus.read(self.corpus, self.thumbnails.limits.picture_pixels) if there else UNREAD
                except ValueError:
                    self._pages = UNREAD
        if isinstance(self._pages, str):
            raise UnseenError(self._pages)
        return self._pages

    def _allowed(self, path: Path) -> Path:
        """The file that a path means, if it may be opened."""
        from unify_posttrain.tasks.vrag.corpus import SUFFIXES

        try:
            found = path.resolve()
            inside = any(found.is_relative_to(folder) for folder in self.folders)
        except (OSError, RuntimeError, ValueError):  # a NUL, a name without end, links that go round
            inside = False
        if not inside:
            advice = " ".join((*self.closed, f"Give the folder of the data with {OPTION} if it is to be shown."))
            raise UnseenError(f"This picture lies outside of the folders that the page is made from. {advice}")
        if found.suffix.lower() not in SUFFIXES:
            raise UnseenError(f"Pictures of the page end with {', '.join(SUFFIXES)}.")
        if not found.is_file():
            raise UnseenError(GONE)
        return found

    def _cut(self, file: Any, rect: Rect | None) -> Any:
        from unify_posttrain.tasks.vrag.corpus import PageError, cut_image, image_size

        limits = self.thumbnails.limits
        try:
            width, height = image_size(file, limits.picture_pixels)
            left, top, right, bottom = rect = (0, 0, width, height) if rect is None else rect
            if not (0 <= left < right <= width and 0 <= top < bottom <= height):
                raise UnseenError("The part that was shown is none of the page that is there now.")
            scale = min(1.0, limits.picture_side / max(right - left, bottom - top))
            size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
            return cut_image(file, rect, size, limits.picture_pixels)
        except (PageError, MemoryError):
            raise UnseenError("This picture is damaged, too large, or in another format.") from None


def pictures_of(run: Run, thumbnails: Thumbnails, given: Sequence[Path] = (), dump: Path | None = None) -> Pictures:
    """The pictures of a run.

    Args:
        run: its configuration says where its data and its corpus are. It may be of somebody else: folders that it names count if
            they lie below UNIFY_HOME.
        thumbnails: of the page.
        given: folders that may be looked into, by whoever makes the page.
        dump: the folder of rollouts, if it is not in the run.
    """
    named = [run.setting("data.image_root"), *(_parent(each) for key in DATA for each in _listed(run.setting(key)))]
    return opened(thumbnails, [run.folder, *given, *([] if dump is None else [dump])], named, run.setting(CORPUS))


def opened(thumbnails: Thumbnails, trusted: Sequence[Path], named: Iterable[Any], corpus: Any) -> Pictures:
    """Pictures of trusted folders, and of folders that a file names if these are in a trusted one or below UNIFY_HOME.

    Args:
        thumbnails: of the page.
        trusted: folders.
        named: folders; what is none is left out.
        corpus: likewise, of pages.
    """
    bases = [Path(folder).expanduser().resolve() for folder in (*trusted, os.environ.get(HOME_VARIABLE, "outputs"))]
    folders, closed = bases[:-1], []
    found = {each: _within(each, bases) for each in dict.fromkeys((*named, corpus)) if isinstance(each, str) and each}
    folders += [each for each in found.values() if each is not None]
    closed = [f"{name} is not below {HOME_VARIABLE}." for name, each in found.items() if each is None]
    pages = found.get(corpus) if isinstance(corpus, str) else None
    if pages is None:  # whoever makes the page may name the corpus itself
        pages = next((folder for folder in bases[:-1] if (folder / PAGES).is_file()), None)
    return Pictures(thumbnails, tuple(dict.fromkeys(folders)), pages, tuple(closed))


def box_of(before: Any, after: Any) -> list[float] | None:
    """Where on an image the part lies that the next one shows, as shares of its sides; None: the next one shows something else."""
    (page, outer), (other, inner) = _origin(before), _origin(after)
    if page is None or page != other or outer is None or inner is None or inner == outer:
        return None
    width, height = outer[2] - outer[0], outer[3] - outer[1]
    if width < 1 or height < 1:
        return None
    box = [(inner[place] - outer[place % 2]) / (height if place % 2 else width) for place in range(4)]
    return [round(each, 4) for each in box] if box[0] < box[2] and box[1] < box[3] and all(0 <= each <= 1 for each in box) else None


def _origin(given: Any) -> tuple[str | None, Rect | None]:
    page, rect = (given.get("page_id"), given.get("rect")) if isinstance(given, Mapping) else (None, None)
    if not isinstance(page, str) or not isinstance(rect, list) or len(rect) != 4 or any(type(each) is not int for each in rect):
        return None, None
    return page, (rect[0], rect[1], rect[2], rect[3])


def _caption(given: Any) -> str:
    page, rect = _origin(given)
    if page is None or rect is None:
        return "picture"
    return f"{page}, pixels {rect[0]}, {rect[1]} to {rect[2]}, {rect[3]}"


def _decoded(uri: str) -> bytes:
    """The bytes of a data URI."""
    head, _, content = uri.partition(",")
    if not head.endswith(";base64"):
        raise UnseenError("This picture is written in a form that is not read here.")
    try:
        return base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError):
        raise UnseenError("This picture is damaged.") from None


def _within(name: str, bases: Sequence[Path]) -> Path | None:
    try:
        found = Path(name).expanduser().resolve()
    except (OSError, RuntimeError, ValueError):
        return None
    return found if any(found.is_relative_to(base) for base in bases) else None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _parent(file: Any) -> str | None:
    return str(Path(file).parent) if isinstance(file, str) and file else None
