"""From documents to a corpus: PDFs are rendered page by page and their text layer is kept, images are pages as they are.

A page of `report.pdf` becomes `pages/report_3.png` and has the id `report_3`, which is how questions name it. An image keeps its
name; a text file of the same name beside it says what stands on it. Text is not recognised in images.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unify_posttrain.preparation.store import MANIFEST, sha256, up_to_date, write_manifest
from unify_posttrain.tasks.vrag.calls import sendable
from unify_posttrain.tasks.vrag.corpus import PAGES, SUFFIXES, PageError, PageRecord, image_size, write_pages
from unify_posttrain.untrusted.folders import refuse_links

logger = logging.getLogger(__name__)

KEY = "prepare.task.documents"
FOLDER = "pages"
PDF = ".pdf"
POINTS = 72  # per inch: the unit of PDFs

_NUMBERED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class Rendering:
    """How documents become pages.

    Attributes:
        dpi: of pages of PDFs.
        largest_pages: of one PDF.
        largest_px: pixels of one page.
    """

    dpi: int
    largest_pages: int
    largest_px: int


def documents_in(folder: Path) -> list[Path]:
    """The PDFs and images of a folder and the folders in it, sorted by path.

    Raises:
        ValueError: no such folder, nothing in it, or a link that leads out of it.
    """
    if not folder.is_dir():
        raise ValueError(f"{KEY}={folder}: no such folder; give one with PDFs or images")
    found = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in (PDF, *SUFFIXES))
    if not found:
        raise ValueError(
            f"{KEY}={folder}: holds no file that ends with {', '.join((PDF, *SUFFIXES))}; give a folder with documents"
        )
    refuse_links(folder, found, KEY)
    return found


def write_corpus(root: Path, documents: Path, how: Rendering) -> Path:
    """Make a corpus of a folder of documents; nothing to do if it is there and the documents are the same.

    Args:
        root: of the corpus; what was there is replaced when all pages are made.
        documents: folder of PDFs and images.
        how: pages are rendered.

    Returns:
        its `pages.jsonl`.

    Raises:
        ValueError: a document that cannot be read, a page that is too large, or two pages of one name; names the file.
    """
    files = documents_in(documents)
    sums = {str(path.relative_to(documents)): sha256(path) for path in _with_texts(files)}
    identity = {"documents": sums, "rendering": how.__dict__}

    def pages(folder: Path) -> Iterator[PageRecord]:
        for path in files:
            yield from _pdf_pages(path, folder, how) if path.suffix.lower() == PDF else [_image_page(path, folder, how)]

    return fill_corpus(root, identity, pages)


def fill_corpus(root: Path, identity: Mapping[str, Any], pages: Callable[[Path], Iterator[PageRecord]]) -> Path:
    """Make a corpus, whole or not at all, unless one of the same identity is there.

    Args:
        root: of the corpus.
        identity: JSON-ready; what decides the pages.
        pages: folder -> records, whose images it has put there.

    Raises:
        ValueError: two pages of one name.
    """
    if _complete(root, identity):
        logger.info("corpus in %s is up to date", root)
        return root / PAGES
    draft = root.with_name(f".{root.name}.draft")
    shutil.rmtree(draft, ignore_errors=True)
    (draft / FOLDER).mkdir(parents=True)
    try:
        made: dict[str, PageRecord] = {}
        for page in pages(draft):
            if page.page_id in made:
                raise ValueError(
                    f"{KEY}: {page.file_name} and {made[page.page_id].file_name} both have a page {page.page_id}; rename one"
                )
            made[page.page_id] = page
        path = write_pages(draft, made.values())
        write_manifest(draft / MANIFEST, {**identity, "sha256": {PAGES: sha256(path)}, "pages": len(made)})
        shutil.rmtree(root, ignore_errors=True)
        draft.rename(root)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    logger.info("wrote a corpus of %d pages to %s", len(made), root)
    return root / PAGES


def _complete(root: Path, identity: Mapping[str, Any]) -> bool:
    from unify_posttrain.tasks.vrag.corpus import Corpus

    if not up_to_date(root / MANIFEST, identity, {PAGES: root / PAGES}):
        return False
    return all((root / page.image).is_file() for page in Corpus.read(root, 0, KEY).pages)


def _with_texts(files: list[Path]) -> Iterator[Path]:
    """Documents, and the texts beside images."""
    for path in files:
        yield path
        if path.suffix.lower() != PDF and path.with_suffix(".txt").is_file():
            yield path.with_suffix(".txt")


def _pdf_pages(path: Path, folder: Path, how: Rendering) -> Iterator[PageRecord]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        raise ValueError(f"{path} cannot be read as PDF ({error}); repair it, take its password off, or leave it out") from error
    with document:
        if not 0 < len(document) <= how.largest_pages:
            raise ValueError(
                f"{path} has {len(document)} pages, and at most prepare.task.largest_pages={how.largest_pages} may be rendered; "
                "raise it, or leave the document out"
            )
        for number in range(1, len(document) + 1):
            name = f"{FOLDER}/{path.stem}_{number}.png"
            try:
                page = document[number - 1]
                width, height = (side * how.dpi / POINTS for side in page.get_size())
                if width * height > how.largest_px:
                    raise ValueError(
                        f"{path}, page {number} would have {width:.0f}x{height:.0f} pixels, more than "
                        f"environment.largest_page_px={how.largest_px}; lower prepare.task.dpi={how.dpi}"
                    )
                page.render(scale=how.dpi / POINTS).to_pil().convert("RGB").save(folder / name)
                text = page.get_textpage().get_text_range()
            except pypdfium2.PdfiumError as error:
                raise ValueError(f"{path}, page {number} cannot be rendered ({error}); repair it, or leave it out") from error
            yield PageRecord(f"{path.stem}_{number}", name, _clean(text), path.name, number)


def _image_page(path: Path, folder: Path, how: Rendering) -> PageRecord:
    name = f"{FOLDER}/{path.name}"
    try:
        image_size(path, how.largest_px)
    except PageError as error:
        raise ValueError(f"{KEY}: {error}") from error
    shutil.copyfile(path, folder / name)
    beside = path.with_suffix(".txt")
    text = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    numbered = _NUMBERED.fullmatch(path.stem)
    document, page = (numbered[1], int(numbered[2])) if numbered else (path.stem, None)
    return PageRecord(path.stem, name, _clean(text), document, page)


def _clean(text: str) -> str:
    """Lines as UTF-8 holds them; broken fonts make halves of characters and NULs of some letters."""
    return "\n".join(line.rstrip() for line in sendable(text).replace("\0", "").splitlines()).strip()
