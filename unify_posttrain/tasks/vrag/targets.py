"""Targets with images: the messages of a data row with the images that they show, made as the environment makes them.

A user's message is one or several `<image>`, one per entry of `target_images` in their order, or a text. An entry is the path of an
image, or `{"page_id": …, "rect": [left, top, right, bottom]}` of a page of the corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.turns import ImagePart
from unify_posttrain.tasks.vrag.corpus import Corpus, PageError, check_pixels, image_size, page_id_of
from unify_posttrain.tasks.vrag.settings import VragSettings
from unify_posttrain.tasks.vrag.showing import show
from unify_posttrain.tasks.vrag.views import RefusedBoxError, View
from unify_posttrain.untrusted.documents import DocumentError, parse

IMAGE = "<image>"


def shown_images(content: str) -> int:
    """How many images a message of the user shows.

    Raises:
        ValueError: images and text in one message, which no search and no crop brings.
    """
    count = content.count(IMAGE)
    if count and content.replace(IMAGE, "").strip():
        raise ValueError(f"a message of the user is {IMAGE} or a text, not both: {content[:80]!r}")
    return count


@lru_cache(maxsize=4)
def corpus_of(folder: str, largest_px: int) -> Corpus:
    """The corpus that targets name pages of, read once; see :meth:`Corpus.read`."""
    return Corpus.read(Path(folder), largest_px)


def names_page(entry: str) -> bool:
    """Whether an entry of `target_images` names a page and not a path."""
    return entry.lstrip().startswith("{")


def with_images(
    target: Sequence[Mapping[str, str]], target_images: Sequence[str], corpus: Corpus | None, own: VragSettings
) -> list[dict[str, Any]]:
    """The messages of a target, for :func:`~unify_posttrain.experience.transcript.replay`.

    Args:
        target: {role, content}; the assistant's at both ends.
        target_images: what the marks in it stand for.
        corpus: of entries that name pages; None: there are none.
        own: how views are shown.

    Returns:
        the same messages; the content of one with images is a tuple of :class:`ImagePart`.

    Raises:
        ValueError: an image that cannot be shown, or another number of marks than of images.
    """
    marks = _marks(target, target_images)
    images = [_image(entry, corpus, own) for entry in target_images]
    found: list[dict[str, Any]] = []
    for message, count in zip(target, marks, strict=True):
        content: Any = tuple(images[:count]) if count else message["content"]
        images = images[count:]
        found.append({"role": message["role"], "content": content})
    return found


def check_images(
    target: Sequence[Mapping[str, str]], target_images: Sequence[str], corpus: Corpus | None, own: VragSettings, known: set[Path]
) -> None:
    """Refuse what :func:`with_images` would refuse, without showing anything.

    Args:
        target, target_images, corpus, own: see there.
        known: files that were read and need not be read again; those that are read here are added.

    Raises:
        ValueError: see there.
    """
    _marks(target, target_images)
    for entry in target_images:
        try:
            view, path = _located(entry, corpus, own)
            own.showing.size(view.size)
            if path not in known:
                check_pixels(path, own.largest_page_px)
                known.add(path)
        except (PageError, RefusedBoxError) as error:
            raise _refused(entry, error) from error


def _marks(target: Sequence[Mapping[str, str]], target_images: Sequence[str]) -> list[int]:
    """How many images each message shows."""
    marks = [shown_images(message["content"]) if message["role"] == "user" else 0 for message in target]
    if sum(marks) != len(target_images):
        raise ValueError(f"target has {sum(marks)} marks {IMAGE} for {len(target_images)} target_images; give one for each")
    return marks


def _refused(entry: str, error: Exception) -> ValueError:
    return ValueError(f"target_images, {entry[:120]!r}: {error}")


def _image(entry: str, corpus: Corpus | None, own: VragSettings) -> ImagePart:
    try:
        return show(*_located(entry, corpus, own), own)
    except (PageError, RefusedBoxError) as error:
        raise _refused(entry, error) from error


def _located(entry: str, corpus: Corpus | None, own: VragSettings) -> tuple[View, Path]:
    """What an entry shows, and the file that it is a part of; PageError if there is no such thing."""
    if not names_page(entry):
        path = Path(entry).expanduser()
        width, height = image_size(path, own.largest_page_px)
        return View(page_id_of(path.name), (0, 0, width, height)), path
    page, rect = _entry(entry)
    if corpus is None:
        raise PageError("it names a page of a corpus, and there is none")
    path = corpus.path(page)
    width, height = image_size(path, own.largest_page_px)
    left, top, right, bottom = rect
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise PageError(f"rect={list(rect)} is no part of the page, which has {width}x{height} pixels")
    return View(page, rect), path


def _entry(text: str) -> tuple[str, tuple[int, int, int, int]]:
    try:
        found = parse(text)
        page, rect = found["page_id"], found["rect"]
        left, top, right, bottom = rect
    except (DocumentError, KeyError, TypeError, ValueError) as error:
        raise PageError('must be {"page_id": text, "rect": [left, top, right, bottom]} or a path') from error
    if not isinstance(page, str) or any(type(each) is not int for each in (left, top, right, bottom)):
        raise PageError('must be {"page_id": text, "rect": [left, top, right, bottom]} in whole pixels, or a path')
    return page, (left, top, right, bottom)
