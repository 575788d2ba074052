"""The client of a retrieval server, in both wire formats.

    get     GET  /search?queries=a&queries=b            ->  [[{"idx", "image_file"}, …], …]
    post    POST /search {"queries": […], "top_k": 3}   ->  {"results": [[{"score", "indice", "data"}, …], …]}

What the server says is a name: an image is opened under the corpus of `environment.retriever.corpus` or not at all.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unify_posttrain.tasks.vrag.calls import CallError, Calls, sendable
from unify_posttrain.tasks.vrag.corpus import PageError, page_id_of, within
from unify_posttrain.tasks.vrag.retrieval import Page, RetrievalError
from unify_posttrain.tasks.vrag.settings import RetrieverSettings

logger = logging.getLogger(__name__)

_FILE_KEYS = ("image_file", "file_path", "image")


class HttpRetriever:
    """Asks a server; see :class:`~unify_posttrain.tasks.vrag.retrieval.Retriever`.

    Args:
        settings: address, wire format, time limit, attempts, batches and connections.
    """

    def __init__(self, settings: RetrieverSettings) -> None:
        self.settings, self.root = settings, Path(settings.corpus).expanduser()
        self.calls = Calls(
            settings.url,
            settings.timeout_s,
            settings.retries,
            settings.pause_s,
            settings.connections,
            settings.largest_answer_bytes,
        )

    async def search(self, queries: list[str], top_k: int) -> list[list[Page]]:
        """See :class:`~unify_posttrain.tasks.vrag.retrieval.Retriever`."""
        size = self.settings.batch
        batches = [queries[begin : begin + size] for begin in range(0, len(queries), size)]
        found = await asyncio.gather(*(self._ask(batch, top_k) for batch in batches))
        return [pages for batch in found for pages in batch]

    async def _ask(self, queries: Sequence[str], top_k: int) -> list[list[Page]]:
        said = [sendable(query) for query in queries]
        try:
            if self.settings.wire == "get":
                answer = await self.calls.ask("GET", "/search", params=[("queries", query) for query in said])
            else:
                answer = await self.calls.ask("POST", "/search", json={"queries": said, "top_k": top_k})
                answer = answer.get("results") if isinstance(answer, Mapping) else None
        except CallError as error:
            raise RetrievalError(str(error)) from error
        if not isinstance(answer, list) or len(answer) != len(queries) or not all(isinstance(each, list) for each in answer):
            raise RetrievalError(
                f"{self.settings.url} does not answer in the format environment.retriever.wire={self.settings.wire}: a list of "
                "pages per query"
            )
        return [self._pages(results[:top_k]) for results in answer]

    def _pages(self, results: Sequence[Any]) -> list[Page]:
        """Results that name an image of the corpus; what names none is left out, and said."""
        found = []
        for place, result in enumerate(results):
            name, score = _named(result)
            try:
                if name is None:
                    raise PageError(f"a result names no image: {str(result)[:200]!r}")
                path = within(self.root, name)
            except PageError as error:
                logger.warning("environment.retriever.url=%s: %s", self.settings.url, error)
                continue
            found.append(Page(page_id_of(name), path, float(-place) if score is None else score))
        return found


def _named(result: Any) -> tuple[str | None, float | None]:
    """The image that a result names, and its score."""
    if not isinstance(result, Mapping):
        return None, None
    score, data = result.get("score"), result.get("data", result)
    if isinstance(data, Mapping):
        data = next((data[key] for key in _FILE_KEYS if isinstance(data.get(key), str)), None)
    numeric = isinstance(score, int | float) and not isinstance(score, bool)
    return (data if isinstance(data, str) and data else None), (float(score) if numeric else None)
