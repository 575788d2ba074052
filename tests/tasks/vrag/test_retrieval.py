"""Rankings and corpora: vectors B and I, dense vectors, and files that are not what they should be."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.tasks.vrag.kit import TEXTS, make_corpus, settings
from unify_posttrain.tasks.vrag.bm25 import BM25
from unify_posttrain.tasks.vrag.corpus import Corpus, PageError, cut_image, image_size, within
from unify_posttrain.tasks.vrag.retrieval import RetrievalError, Vectors, make_retriever, ranked_corpus
from unify_posttrain.tasks.vrag.settings import RetrieverSettings

LARGEST = 10_000_000


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("vrag") / "corpus", (300, 200))


def retriever_settings(corpus: Path, **changes: Any) -> RetrieverSettings:
    return RetrieverSettings(**{**settings(corpus)["retriever"], **changes})


def test_bm25() -> None:
    index = BM25(TEXTS, 1.5, 0.75)
    assert (index.idf("revenue"), index.idf("building")) == pytest.approx((0.538997, 1.386294), abs=1e-6)
    found = index.rank("revenue forecast", 10)
    assert [page for page, _ in found] == ["deck_2", "memo_1", "deck_1"]
    assert [score for _, score in found] == pytest.approx([1.645464, 1.198699, 0.538997], abs=1e-6)
    assert index.rank("Headquarters!", 10) == [("memo_2", pytest.approx(1.386294, abs=1e-6))]
    assert index.rank("zebra", 10) == index.rank("", 10) == []
    assert [page for page, _ in index.rank("revenue forecast", 2)] == ["deck_2", "memo_1"]
    assert [page for page, _ in BM25({"b": "x", "a": "x", "c": "y"}, 1.5, 0.75).rank("x", 5)] == ["a", "b"]  # ties by id
    assert BM25({"a": "", "b": ""}, 1.5, 0.75).rank("x", 5) == []


def test_repeated_words_of_a_query_count() -> None:
    index = BM25(TEXTS, 1.5, 0.75)
    once, twice = (dict(index.rank(query, 10))["deck_1"] for query in ("revenue", "revenue revenue"))
    assert twice == pytest.approx(2 * once) and math.isfinite(once)


def test_the_pages_of_a_corpus_are_sorted_by_id(corpus: Path) -> None:
    made = make_retriever(retriever_settings(corpus), LARGEST)
    assert made is make_retriever(retriever_settings(corpus), LARGEST)  # one index per process
    found = asyncio.run(made.search(["revenue forecast", "zebra"], 10))
    assert [[page.page_id for page in pages] for pages in found] == [["deck_2", "memo_1", "deck_1"], []]
    assert found[0][0].image == corpus / "pages" / "deck_2.png" and found[0][0].text == TEXTS["deck_2"]
    assert [page.page_id for page in Corpus.read(corpus, LARGEST).pages] == sorted(TEXTS)


def embed(texts: list[str]) -> np.ndarray:
    """Counts of a few words."""
    return np.array([[text.count("revenue"), text.count("headcount"), text.count("photo")] for text in texts], dtype=float)


def test_dense_vectors(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pages.npy", embed([TEXTS[page] for page in sorted(TEXTS)]))
    dense = {"kind": "dense", "vectors": str(tmp_path / "pages.npy"), "embedder": f"{__name__}:embed"}
    found = ranked_corpus(retriever_settings(corpus, **dense), LARGEST).search_now(["revenue", "photo"], 3)
    assert [page.page_id for page in found[0]] == ["deck_1", "deck_2", "memo_1"]  # cosines 1, 1, .7071; ties by id
    assert [page.score for page in found[0]] == pytest.approx([1, 1, math.sqrt(0.5)])
    assert found[1][0].page_id == "memo_2"
    for wrong in ({"vectors": str(tmp_path / "none.npy")}, {"embedder": "no.such:thing"}, {"embedder": "json:nothing"}):
        with pytest.raises(ValueError, match=r"environment.retriever.(vectors|embedder)="):
            ranked_corpus(retriever_settings(corpus, **{**dense, **wrong}), LARGEST)


def test_vectors_are_read_as_numbers_alone(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"code": print}] * 5, dtype=object), allow_pickle=True)
    dense = {"kind": "dense", "vectors": str(tmp_path / "objects.npy"), "embedder": f"{__name__}:embed"}
    with pytest.raises(
        ValueError, match=r"environment.retriever.vectors=.* cannot be read as .npy \(Object arrays cannot be loaded"
    ):
        ranked_corpus(retriever_settings(corpus, **dense), LARGEST)


def test_vectors_that_do_not_fit() -> None:
    for matrix in (np.zeros((2, 3)), np.zeros(3), np.full((1, 3), np.nan)):
        with pytest.raises(ValueError, match="for 1 pages: give finite numbers, a row per page"):
            Vectors(["a"], matrix, embed)
    with pytest.raises(RetrievalError, match=r"answers with shape \(1, 3\) for one query, not \(1, 2\)"):
        Vectors(["a"], np.ones((1, 2)), embed).rank("x", 1)


def test_an_embedder_that_fails_is_a_search_that_fails(corpus: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "pages.npy", np.ones((5, 3)))
    dense = {"kind": "dense", "vectors": str(tmp_path / "pages.npy"), "embedder": "json:loads"}
    with pytest.raises(RetrievalError, match="TypeError"):
        ranked_corpus(retriever_settings(corpus, **dense), LARGEST).search_now(["x"], 3)


PAGE = {"page_id": "a_1", "image": "pages/a_1.png", "text": "x", "file_name": "a.pdf", "page": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": "../a_1.png"}, "outside of"),
        ({"image": "/etc/a_1.png"}, "outside of"),
        ({"image": "pages/a_1.pdf"}, r"must end with one of .png"),
        ({"page_id": "b"}, "page_id='b' must be the name of image='pages/a_1.png' without its last suffix"),
        ({"text": 3}, "text='3' must be text"),
        ({"page": "one"}, "page='one' must be a number"),
        ({"image": ""}, "image='' must be text"),
        (None, "must be an object with the keys page_id, image, text, file_name, page"),
    ],
)
def test_lines_that_are_no_pages(tmp_path: Path, changes: dict[str, Any] | None, message: str) -> None:
    good = json.dumps({**PAGE, "page_id": "z", "image": "pages/z.png"})
    (tmp_path / "pages.jsonl").write_text(f"{good}\n\n{json.dumps([] if changes is None else {**PAGE, **changes})}\n")
    with pytest.raises(ValueError, match=f"pages.jsonl, line 3.*{message}"):
        Corpus.read(tmp_path, LARGEST)


def test_corpora_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"environment.retriever.corpus=.*prepare task=vrag"):
        Corpus.read(tmp_path, LARGEST)
    for text, message in (
        ("\n", "holds no page"),
        ("{", "line 1: invalid JSON"),
        (f"{json.dumps(PAGE)}\n" * 2, "stands there twice"),
    ):
        (tmp_path / "pages.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            Corpus.read(tmp_path, LARGEST)


def test_a_link_that_leads_out_is_not_served(corpus: Path, tmp_path: Path) -> None:
    copied = make_corpus(tmp_path / "copied", (100, 100))
    secret = tmp_path / "secret.png"
    Image.new("RGB", (100, 100)).save(secret)
    (copied / "pages" / "deck_1.png").unlink()
    (copied / "pages" / "deck_1.png").symlink_to(secret)
    read = Corpus.read(copied, LARGEST)
    with pytest.raises(PageError, match="is a link that leads out"):
        read.path("deck_1")
    with pytest.raises(PageError, match="is none of the corpus"):
        read.path("../secret")
    assert read.path("deck_2").is_file()
    with pytest.raises(PageError, match="is no image of the corpus"):
        within(copied, "pages/deck_1.png")


def test_names_that_a_server_says(corpus: Path) -> None:
    assert within(corpus, "pages/deck_1.png") == within(corpus, str(corpus / "pages" / "deck_1.png"))
    for name in (
        "/etc/passwd",
        "../x.png",
        "pages/../../x.png",
        "",
        "pages",
        "pages.jsonl",
        "a\0.png",
        "~/x.png/..",
    ):
        with pytest.raises(PageError, match="is no image of the corpus"):
            within(corpus, name)


def test_images_that_cannot_be_shown(tmp_path: Path) -> None:
    Image.new("RGB", (100, 50), (1, 2, 3)).save(tmp_path / "a.png")
    assert image_size(tmp_path / "a.png", LARGEST) == (100, 50)
    assert cut_image(tmp_path / "a.png", (10, 10, 40, 40), (28, 28), LARGEST).getpixel((3, 3)) == (1, 2, 3)
    with pytest.raises(PageError, match=r"has 100x50 pixels, more than environment.largest_page_px=4999"):
        image_size(tmp_path / "a.png", 4999)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (9, 9)).save(tmp_path / "bitmap.bmp")
    for name in ("cut.png", "text.png", "bitmap.bmp", "none.png"):
        with pytest.raises(PageError, match=r"cannot be (opened|read)"):
            cut_image(tmp_path / name, (0, 0, 9, 9), (28, 28), LARGEST)
