"""Retrievers: pages for queries, from the texts of a corpus, from vectors, or from a server.

    bm25     the texts of the pages, in this process
    dense    vectors of the pages beside an embedder of queries, cosine
    http     a server that speaks one of two wire formats (`client`)

All of them work in threads, so that a loop over many episodes goes on, and raise nothing but `RetrievalError`.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from unify_posttrain.tasks.vrag.bm25 import BM25
from unify_posttrain.tasks.vrag.corpus import Corpus
from unify_posttrain.tasks.vrag.settings import RetrieverSettings
from unify_posttrain.tasks.waiting import in_thread

Embed = Callable[[list[str]], Any]


class RetrievalError(RuntimeError):
    """A search that could not be carried out; says why."""


@dataclass(frozen=True)
class Page:
    """A page that was found.

    Attributes:
        page_id: the name of its image without the last suffix.
        image: where the image is.
        score: of the retriever; higher is better.
        text: what stands on the page, if the retriever knows.
    """

    page_id: str
    image: Path
    score: float
    text: str | None = None


class Retriever(Protocol):
    """What an environment searches with."""

    async def search(self, queries: list[str], top_k: int) -> list[list[Page]]:
        """The best pages of each query, best first.

        Raises:
            RetrievalError: the search failed.
        """


class RankedCorpus:
    """A corpus in this process, with a way to rank its pages.

    Args:
        corpus: the pages.
        rank: query, number -> page ids and scores, best first.
        threads: that rank.
    """

    def __init__(self, corpus: Corpus, rank: Callable[[str, int], list[tuple[str, float]]], threads: int) -> None:
        self.corpus, self.rank, self.threads = corpus, rank, threads

    async def search(self, queries: list[str], top_k: int) -> list[list[Page]]:
        """See :class:`Retriever`."""
        found: list[list[Page]] = await in_thread(self.threads, self.search_now, queries, top_k)
        return found

    def search_now(self, queries: Sequence[str], top_k: int) -> list[list[Page]]:
        """The same at once.

        Raises:
            RetrievalError: the embedder of queries failed.
        """
        try:
            return [[self._page(page, score) for page, score in self.rank(query, top_k)] for query in queries]
        except RetrievalError:
            raise
        except Exception as error:  # an embedder is code of the user's
            raise RetrievalError(f"{type(error).__name__}: {error}") from error

    def _page(self, page_id: str, score: float) -> Page:
        record = self.corpus.by_id[page_id]
        return Page(page_id, self.corpus.root / record.image, score, record.text)


class Vectors:
    """Cosine similarity of pages and queries.

    Args:
        pages: ids, in the order of the rows of `matrix`.
        matrix: (pages, dimensions).
        embed: texts -> (texts, dimensions).

    Raises:
        ValueError: another number of rows than of pages, or values that are not finite.
    """

    def __init__(self, pages: Sequence[str], matrix: np.ndarray, embed: Embed) -> None:
        if matrix.ndim != 2 or len(matrix) != len(pages) or not np.isfinite(matrix).all():
            raise ValueError(
                f"environment.retriever.vectors has the shape {matrix.shape} for {len(pages)} pages: give finite numbers, a row "
                "per page in the order of their ids"
            )
        self.pages, self.embed = list(pages), embed
        self.matrix = _unit(matrix.astype(np.float32))

    def rank(self, query: str, top_k: int) -> list[tuple[str, float]]:
        """Page ids and cosines, best first, ties by id; RetrievalError if the embedder answers otherwise."""
        vector = np.asarray(self.embed([query]), dtype=np.float32)
        if vector.shape != (1, self.matrix.shape[1]) or not np.isfinite(vector).all():
            raise RetrievalError(f"the embedder answers with shape {vector.shape} for one query, not (1, {self.matrix.shape[1]})")
        scores = self.matrix @ _unit(vector)[0]
        best = sorted(range(len(scores)), key=lambda row: (-float(scores[row]), self.pages[row]))[:top_k]
        return [(self.pages[row], float(scores[row])) for row in best]


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length one; a row of zeros is similar to nothing."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    found: np.ndarray = rows / np.where(lengths > 0, lengths, 1.0)
    return found


def ranked_corpus(settings: RetrieverSettings, largest_px: int) -> RankedCorpus:
    """The retriever of a corpus in this process: `bm25` or `dense`.

    Raises:
        ValueError: no corpus, or vectors or an embedder that do not fit; names the key.
    """
    corpus = Corpus.read(Path(settings.corpus), largest_px)
    if settings.kind == "dense":
        ranking = Vectors([page.page_id for page in corpus.pages], _load_vectors(settings), _load_embedder(settings)).rank
    else:
        ranking = BM25({page.page_id: page.text for page in corpus.pages}, settings.k1, settings.b).rank
    return RankedCorpus(corpus, ranking, settings.threads)


def make_retriever(settings: RetrieverSettings, largest_px: int) -> Retriever:
    """The retriever of the settings; equal ones share one.

    Raises:
        ValueError: settings that lead nowhere; names the key.
    """
    return _made(json.dumps(settings.__dict__, sort_keys=True), largest_px)


@lru_cache(maxsize=8)
def _made(text: str, largest_px: int) -> Retriever:
    settings = RetrieverSettings(**json.loads(text))
    if settings.kind != "http":
        return ranked_corpus(settings, largest_px)
    from unify_posttrain.tasks.vrag.client import HttpRetriever

    return HttpRetriever(settings)


def _load_vectors(settings: RetrieverSettings) -> np.ndarray:
    try:
        found: np.ndarray = np.load(Path(str(settings.vectors)).expanduser(), allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"environment.retriever.vectors={settings.vectors} cannot be read as .npy ({error}); save them with numpy.save"
        ) from error
    return found


def _load_embedder(settings: RetrieverSettings) -> Embed:
    module, _, name = str(settings.embedder).partition(":")
    try:
        found: Embed = getattr(importlib.import_module(module), name)
    except (AttributeError, ImportError, ValueError) as error:
        raise ValueError(
            f"environment.retriever.embedder={settings.embedder} cannot be imported ({error}); give module:function, which makes a "
            "list of texts an array of one row each"
        ) from error
    return found
