"""A retrieval server: searches and pages of one corpus over HTTP.

    python -m unify_posttrain.tasks.vrag.server --corpus outputs/data/vrag/corpus

    GET  /search?queries=a&queries=b           [[{"idx": 1, "image_file": "pages/report_3.png"}, …], …]
    POST /search {"queries": ["a"], "top_k": 3}   {"results": [[{"score": 1.6, "indice": 1, "data": {…}}, …]]}
    GET  /image/{page_id}                      the image of a page
    GET  /healthz                              {"status": "ok", "pages": 12}

Numbers that no option gives stand in conf/task/vrag.yaml. It listens on this machine alone unless told otherwise, and asks nobody
who they are. Paths are relative to the corpus, so that a client opens them under its own copy of it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import uvicorn
from fastapi import Body, FastAPI, HTTPException, Query
from fastapi.responses import FileResponse
from omegaconf import OmegaConf

from unify_posttrain.config import conf_dir
from unify_posttrain.output import guard_logs, write
from unify_posttrain.tasks.vrag.corpus import PageError
from unify_posttrain.tasks.vrag.retrieval import Page, RankedCorpus, RetrievalError, ranked_corpus
from unify_posttrain.tasks.vrag.settings import RetrieverSettings

logger = logging.getLogger(__name__)

TASK_FILE = "task/vrag.yaml"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """What a request may ask for: the node `prepare.task.server`.

    Attributes:
        top_k: pages per query of a GET, and of a POST that gives none.
        most_pages: per query.
        most_queries: per request.
        query_characters: of one query.
    """

    top_k: int
    most_pages: int
    most_queries: int
    query_characters: int


def make_app(ranked: RankedCorpus, limits: Limits) -> FastAPI:
    """The application, for uvicorn or another server.

    Args:
        ranked: the corpus with its ranking.
        limits: of requests.
    """
    app = FastAPI(title="unify_posttrain VRAG retrieval", docs_url=None, redoc_url=None, openapi_url=None)
    position = {page.page_id: place for place, page in enumerate(ranked.corpus.pages)}

    def found(queries: list[str], top_k: int) -> list[list[Page]]:
        if not 0 < len(queries) <= limits.most_queries:
            raise HTTPException(422, f"give 1 to {limits.most_queries} queries")
        if not 0 < top_k <= limits.most_pages:
            raise HTTPException(422, f"top_k={top_k}: give a number from 1 to {limits.most_pages}")
        if any(len(query) > limits.query_characters for query in queries):
            raise HTTPException(422, f"a query has at most {limits.query_characters} characters")
        try:
            return ranked.search_now(queries, top_k)
        except RetrievalError as error:
            logger.warning("a search failed: %s", error)
            raise HTTPException(500, "the search failed; the log of the server says why") from error

    def image_file(page: Page) -> str:
        return ranked.corpus.by_id[page.page_id].image

    # Plain functions: the framework runs them in threads, so that a ranking never blocks the loop.
    @app.get("/search")
    def get(queries: Annotated[list[str], Query()]) -> list[list[dict[str, Any]]]:
        return [
            [{"idx": position[page.page_id], "image_file": image_file(page)} for page in pages]
            for pages in found(queries, limits.top_k)
        ]

    @app.post("/search")
    def post(
        queries: Annotated[list[str], Body()], top_k: Annotated[int, Body()] = limits.top_k
    ) -> dict[str, list[list[dict[str, Any]]]]:
        return {
            "results": [
                [
                    {
                        "score": page.score,
                        "indice": position[page.page_id],
                        "data": {"type": "image", "page_id": page.page_id, "file_path": image_file(page)},
                    }
                    for page in pages
                ]
                for pages in found(queries, top_k)
            ]
        }

    @app.get("/image/{page_id}")
    def image(page_id: str) -> FileResponse:
        try:
            path = ranked.corpus.path(page_id)
        except PageError as error:
            raise HTTPException(404, "no such page") from error
        if not path.is_file():
            raise HTTPException(404, "the image of this page is missing")
        return FileResponse(path)

    @app.get("/healthz")
    def healthz() -> dict[str, Any]:
        return {"status": "ok", "pages": len(position)}

    return app


def server_settings() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The nodes `prepare.task.server` and `environment` of conf/task/vrag.yaml."""
    config = OmegaConf.load(conf_dir() / TASK_FILE)
    nodes = (OmegaConf.to_container(config.prepare.task.server), OmegaConf.to_container(config.environment, resolve=True))
    return nodes  # type: ignore[return-value]


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve until stopped; the address is the first line of the output."""
    serving, environment = server_settings()
    parser = argparse.ArgumentParser(prog="python -m unify_posttrain.tasks.vrag.server", description="Serve searches of a corpus.")
    parser.add_argument("--corpus", required=True, help="folder with pages.jsonl")
    parser.add_argument("--host", default=serving["host"], help="address to listen on (default: %(default)s, this machine alone)")
    parser.add_argument("--port", type=int, default=serving["port"], help="0: any that is free (default: %(default)s)")
    parser.add_argument("--vectors", help="file of numpy with a row per page in the order of their ids; needs --embedder")
    parser.add_argument("--embedder", help="module:function that makes texts an array of a row each")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    guard_logs()
    try:
        dense = {"kind": "dense" if given.vectors else "bm25", "vectors": given.vectors, "embedder": given.embedder}
        settings = RetrieverSettings(**{**environment["retriever"], **dense, "corpus": given.corpus})
        ranked = ranked_corpus(settings, environment["largest_page_px"])
    except ValueError as error:
        sys.exit(f"error: {error}")
    _serve(make_app(ranked, Limits(**serving["limits"])), given.host, given.port, len(ranked.corpus.pages), Path(given.corpus))


def _serve(app: FastAPI, host: str, port: int, pages: int, corpus: Path) -> None:
    if host not in LOOPBACK:
        logger.warning("--host %s: whoever reaches this address can search and read every page of %s", host, corpus)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", access_log=False)
    try:
        socket = config.bind_socket()
        socket.listen(config.backlog)  # from here on nobody is refused: who comes before the loop runs waits
    except (OSError, SystemExit) as error:
        sys.exit(f"error: --host {host} --port {port} cannot be listened on ({error}); give others")
    write(f"serving {pages} pages of {corpus} at http://{host}:{socket.getsockname()[1]}")
    uvicorn.Server(config).run(sockets=[socket])


if __name__ == "__main__":
    main()
