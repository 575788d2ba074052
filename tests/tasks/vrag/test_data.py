"""The small corpus, corpora of documents, converters of published layouts, and the rows that `prepare` writes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.tasks.environments import task_settings
from tests.tasks.vrag.kit import settings as node
from unify_posttrain.config import compose_config
from unify_posttrain.prepare import prepare_data
from unify_posttrain.startup.dataset import _read_parquet
from unify_posttrain.tasks.columns import check_row
from unify_posttrain.tasks.environment import make_environment
from unify_posttrain.tasks.episodes import read_settings
from unify_posttrain.tasks.turns import ImagePart
from unify_posttrain.tasks.vrag.bm25 import BM25
from unify_posttrain.tasks.vrag.convert import read_questions, read_trajectories
from unify_posttrain.tasks.vrag.corpus import Corpus
from unify_posttrain.tasks.vrag.environment import Vrag
from unify_posttrain.tasks.vrag.pages import Rendering, write_corpus
from unify_posttrain.tasks.vrag.rows import Settings, write_splits
from unify_posttrain.tasks.vrag.settings import VragSettings
from unify_posttrain.tasks.vrag.targets import IMAGE, with_images
from unify_posttrain.tasks.waiting import settled

HOW = Rendering(36, 10, 10_000_000)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    folder = tmp_path_factory.mktemp("vrag") / "data"
    config = compose_config(["task=vrag", "algorithm=grpo", f"prepare.task.folder={folder}"])
    paths = prepare_data(config)
    assert paths == {
        "train": folder / "train.parquet",
        "test": folder / "test.parquet",
        "corpus": folder / "corpus" / "pages.jsonl",
    }
    return folder, {split: pq.read_table(paths[split]).to_pylist() for split in ("train", "test")}


Prepared = tuple[Path, dict[str, list[dict[str, Any]]]]


def test_the_small_corpus(prepared: Prepared) -> None:
    folder, rows = prepared
    corpus = Corpus.read(folder / "corpus", 10_000_000)
    assert len(corpus.pages) == 12 and all((corpus.root / page.image).is_file() for page in corpus.pages)
    assert sum((corpus.root / page.image).stat().st_size for page in corpus.pages) < 2_000_000
    every = rows["train"] + rows["test"]
    assert (len(rows["train"]), len(rows["test"])) == (69, 17)
    # 4 reports: 2 facts, 4 x 3 cells, 3 questions over two pages each; 4 + 5 + 4 + 5 bars
    kinds = Counter(row["extra_info"]["content_type"] for row in every)
    assert kinds == {"Text": 8, "Table": 48, "Chart": 18, "Text and table": 12}
    uids = [row["extra_info"]["uid"] for row in every]
    assert len(set(uids)) == len(uids) and len({row["extra_info"]["question"] for row in every}) == len(uids)
    for row in every:
        check_row("here", row)
        assert row["prompt"][0]["content"].endswith(f"Question: {row['extra_info']['question']}")
        assert "".join(row["hint"]) == row["target"][0]["content"]
    assert [row["extra_info"]["index"] for row in rows["test"]] == list(range(len(rows["test"])))
    assert len(_read_parquet(str(folder / "train.parquet"))) == len(rows["train"])  # as a run reads it


def test_worked_answers_play_to_the_full_reward_and_show_the_images_they_name(prepared: Prepared) -> None:
    folder, rows = prepared
    made = make_environment(node(folder / "corpus"))
    assert isinstance(made, Vrag)
    corpus = Corpus.read(folder / "corpus", 10_000_000)
    turns = Counter(len(row["target"]) for row in rows["train"])
    assert set(turns) == {3, 5}  # some enlarge a part or need two pages
    chosen = [row for length in turns for row in [each for each in rows["train"] if len(each["target"]) == length][:6]]
    for row in chosen:
        made.reset(row)
        shown = []
        for message in row["target"][::2]:
            step = settled(made.step(message["content"], True))
            shown += [part.origin for part in step.feedback]
        found = made.fields()
        assert (found["score"], found["acc"], found["recall"]) == (pytest.approx(1.0), 1, 1), row["extra_info"]
        assert shown == [json.loads(entry) for entry in row["target_images"]]
        messages = with_images(row["target"], row["target_images"], corpus, made.own)
        parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
        assert [part.origin for part in parts] == shown and all(isinstance(part, ImagePart) for part in parts)


def test_the_first_page_of_every_search_is_the_one_that_matters(prepared: Prepared) -> None:
    folder, rows = prepared
    index = BM25({page.page_id: page.text for page in Corpus.read(folder / "corpus", 10_000_000).pages}, 1.5, 0.75)
    for row in rows["train"] + rows["test"]:
        searches = [message["content"] for message in row["target"][::2] if "<search>" in message["content"]]
        found = [index.rank(text.split("<search>")[1].split("</search>")[0], 1)[0][0] for text in searches]
        stem = row["extra_info"]["file_name"].removesuffix(".pdf")
        assert found == [f"{stem}_{page}" for page in row["extra_info"]["reference_page"]]


def test_equal_settings_do_nothing_and_a_lost_page_is_made_again(prepared: Prepared) -> None:
    folder, _ = prepared
    settings = {**task_settings("vrag"), "folder": str(folder)}
    page = folder / "corpus" / "pages" / "canal_library_2.png"
    before, content = page.stat().st_mtime_ns, page.read_bytes()
    write_splits(folder, settings)
    assert page.stat().st_mtime_ns == before
    page.unlink()
    write_splits(folder, settings)
    assert page.read_bytes() == content  # drawn alike, to the byte
    assert not list(folder.glob(".corpus*"))


def test_crops_of_worked_answers_hold_what_is_asked(prepared: Prepared) -> None:
    """The part that is enlarged is a small part of the page, and not empty."""
    folder, rows = prepared
    seen = 0
    for row in rows["train"]:
        views = [json.loads(entry) for entry in row["target_images"]]
        if len(views) == 2 and views[0]["page_id"] == views[1]["page_id"]:
            left, top, right, bottom = views[1]["rect"]
            whole = views[0]["rect"]
            assert (right - left) * (bottom - top) < 0.5 * whole[2] * whole[3]
            image = Image.open(folder / "corpus" / "pages" / f"{views[0]['page_id']}.png").crop((left, top, right, bottom))
            assert len(image.convert("L").getcolors()) > 8  # letters, smoothed
            seen += 1
    assert seen > 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zoom": 2}, "prepare.task.zoom=2: give a share from 0 to 1"),
        ({"test_share": 0}, "prepare.task.test_share=0: train.parquet and test.parquet need"),
        ({"dpi": 0}, "prepare.task.dpi=0: give an integer of at least 1"),
        ({"seed": "x"}, "prepare.task.seed='x': give an integer"),
        ({"documents": "/no/such"}, "prepare.task.documents=/no/such: no such folder"),
        ({"questions": "/no/such.json"}, "prepare.task.questions=/no/such.json cannot be read"),
        ({"colour": 1}, "settings of the vrag task"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_splits(tmp_path, {**task_settings("vrag"), "folder": str(tmp_path), **changes})


# --- documents ------------------------------------------------------------------------------------------------------


def pdf(path: Path, *texts: str) -> None:
    """A PDF with a text layer, by hand: a font, a page and a stream of signs each."""
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", "", "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for text in texts:
        stream = f"BT /F1 24 Tf 40 700 Td ({text}) Tj ET"
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
        resources = "<< /Font << /F1 3 0 R >> >>"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources {resources} /Contents {len(objects)} 0 R >>"
        )
        kids.append(f"{len(objects)} 0 R")
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>"
    body, places = "%PDF-1.4\n", []
    for number, content in enumerate(objects, start=1):
        places.append(len(body))
        body += f"{number} 0 obj\n{content}\nendobj\n"
    table = "".join(f"{place:010d} 00000 n \n" for place in places)
    size = len(objects) + 1
    end = f"xref\n0 {size}\n0000000000 65535 f \n{table}trailer\n<< /Size {size} /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    path.write_bytes((body + end).encode("latin-1"))


def test_a_corpus_of_documents(tmp_path: Path) -> None:
    documents = tmp_path / "documents"
    (documents / "more").mkdir(parents=True)
    pdf(documents / "annual.report.pdf", "quarterly revenue", "headcount by department")
    Image.new("RGB", (200, 100), "white").save(documents / "more" / "scan_7.jpg")
    (documents / "more" / "scan_7.txt").write_text("the old lighthouse\r\nat night\0")
    Image.new("RGB", (60, 60)).save(documents / "cover.png")
    (documents / "notes.docx").write_text("not a page")
    path = write_corpus(tmp_path / "corpus", documents, HOW)
    corpus = Corpus.read(path.parent, 10_000_000)
    assert [(page.page_id, page.file_name, page.page) for page in corpus.pages] == [
        ("annual.report_1", "annual.report.pdf", 1), ("annual.report_2", "annual.report.pdf", 2), ("cover", "cover", None),
        ("scan_7", "scan", 7),
    ]  # fmt: skip
    assert [page.text for page in corpus.pages] == [
        "quarterly revenue",
        "headcount by department",
        "",
        "the old lighthouse\nat night",
    ]
    with Image.open(corpus.path("annual.report_2")) as image:
        assert image.size == (306, 396)  # 612 x 792 points at 36 dpi
        assert image.convert("L").getextrema()[0] < 128  # something is written on it
    made = (path.parent / "pages" / "cover.png").stat().st_mtime_ns
    assert write_corpus(tmp_path / "corpus", documents, HOW) == path
    assert (path.parent / "pages" / "cover.png").stat().st_mtime_ns == made
    (documents / "more" / "scan_7.txt").write_text("another text")
    write_corpus(tmp_path / "corpus", documents, HOW)
    assert Corpus.read(path.parent, 10_000_000).by_id["scan_7"].text == "another text"


def test_documents_that_are_refused_leave_the_corpus_as_it_was(tmp_path: Path) -> None:
    documents, root = tmp_path / "documents", tmp_path / "corpus"
    documents.mkdir()
    with pytest.raises(ValueError, match=r"holds no file that ends with .pdf, .png"):
        write_corpus(root, documents, HOW)
    pdf(documents / "a.pdf", "one", "two")
    before = write_corpus(root, documents, HOW).read_bytes()
    for how, message in (
        (Rendering(36, 1, 10_000_000), "has 2 pages, and at most prepare.task.largest_pages=1"),
        (Rendering(36, 9, 1000), "a.pdf, page 1 would have 306x396 pixels, more than environment.largest_page_px=1000; lower"),
    ):
        with pytest.raises(ValueError, match=message):
            write_corpus(root, documents, how)
    for name, content, message in (
        ("b.pdf", b"no PDF", "b.pdf cannot be read as PDF"),
        ("b.png", b"no image", "b.png cannot be opened"),
        ("a_1.png", None, "both have a page a_1; rename one"),
    ):
        if content is None:
            Image.new("RGB", (50, 50)).save(documents / name)
        else:
            (documents / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            write_corpus(root, documents, HOW)
        (documents / name).unlink()
    (tmp_path / "elsewhere.pdf").write_bytes((documents / "a.pdf").read_bytes())
    (documents / "link.pdf").symlink_to(tmp_path / "elsewhere.pdf")
    with pytest.raises(ValueError, match="is a link to"):
        write_corpus(root, documents, HOW)
    assert (root / "pages.jsonl").read_bytes() == before and not list(tmp_path.glob(".corpus*"))


# --- published layouts ----------------------------------------------------------------------------------------------

EXAMPLE = {
    "uid": "e1", "query": "How much revenue?", "reference_answer": "12",
    "meta_info": {"file_name": "a.pdf", "reference_page": [1, 2], "source_type": "Table", "query_type": "Multi-Hop"},
}  # fmt: skip


def write(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


def test_published_questions(tmp_path: Path) -> None:
    second = """{"uid": 2, "query": "Q?", "reference_answer": [1.50, "b"],
        "meta_info": {"file_name": "a.b.pdf", "reference_page": 3, "content_type": "Chart"}}"""
    (tmp_path / "q.json").write_text(f'{{"examples": [{json.dumps(EXAMPLE)}, {second}]}}')
    first, other = read_questions(tmp_path / "q.json", "key")
    assert (first.uid, first.answers, first.pages) == ("e1", ("12",), (1, 2))
    assert (first.content_type, first.reason_type) == ("Table", "Multi-Hop")
    assert (other.uid, other.answers, other.pages) == ("2", ("1.5", "b"), (3,))
    assert (other.content_type, other.reason_type) == ("Chart", "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": " "}, "query=' ' must be a text"),
        ({"query": None}, "query='None' must be a text"),
        ({"uid": None}, "uid='None' must be a text or a number"),
        ({"reference_answer": []}, r"reference_answer='\[\]' must be"),
        ({"reference_answer": True}, "reference_answer='True' must be"),
        ({"reference_answer": ["a", None]}, "reference_answer="),
        ({"meta_info": None}, "meta_info='None' must be an object"),
        ({"meta_info": {"file_name": "", "reference_page": [1]}}, "meta_info.file_name='' must be"),
        ({"meta_info": {"file_name": "a.pdf", "reference_page": ["1"]}}, "meta_info.reference_page=.* must be a list of numbers"),
        ({"meta_info": {"file_name": "a.pdf", "reference_page": []}}, "meta_info.reference_page="),
    ],
)
def test_examples_that_are_none(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "q.json", {"examples": [EXAMPLE, {**EXAMPLE, **changes}]})
    with pytest.raises(ValueError, match=f"key=.*q.json, example 2: {message}"):
        read_questions(path, "key")


def test_files_that_hold_no_questions(tmp_path: Path) -> None:
    for text, message in (
        ("[]", 'must be {"examples"'),
        ('{"examples": []}', "must be"),
        ("{", "invalid JSON"),
        ("[" * 9999, "nested"),
    ):
        (tmp_path / "q.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_questions(tmp_path / "q.json", "key")


def trajectory(*contents: str, images: Any = (), asked: str = "Do this.\nQuestion: How much?") -> dict[str, Any]:
    messages = [{"role": ("user", "assistant")[place % 2], "content": content} for place, content in enumerate((asked, *contents))]
    return {"messages": messages, "images": list(images)}


GOOD = ("<think>a</think><search>q</search>", "<image>", "<bbox>[1, 2, 300, 400]</bbox>", "<image>", "<answer>12</answer>")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "img"
    folder.mkdir()
    for name in ("a_1.jpg", "crop.jpg"):
        Image.new("RGB", (400, 300), "red").save(folder / name)
    return folder


def test_published_trajectories(tmp_path: Path, images: Path) -> None:
    item = trajectory(*GOOD, images=["a_1.jpg", str(images / "crop.jpg")])
    item["messages"].insert(0, {"role": "system", "content": "You see pages."})
    (found,) = read_trajectories(write(tmp_path / "t.json", [item]), images, "bbox", "key")
    assert (found.uid, found.text, found.answers, found.file_name) == ("trajectory-1", "How much?", ("12",), None)
    assert [message["content"] for message in found.target] == list(GOOD)
    assert found.target_images == (str((images / "a_1.jpg").resolve()), str((images / "crop.jpg").resolve()))
    own = VragSettings.read(read_settings(node(tmp_path))[1])
    parts = with_images(found.target, found.target_images, None, own)[1]["content"]
    assert parts[0].image.size == own.showing.size((400, 300)) and parts[0].origin == {"page_id": "a_1", "rect": [0, 0, 400, 300]}
    with pytest.raises(ValueError, match="it names a page of a corpus, and there is none"):
        with_images(found.target, ['{"page_id": "a", "rect": [0, 0, 9, 9]}'] * 2, None, own)
    with pytest.raises(ValueError, match=f"target has 2 marks {IMAGE} for 1 target_images"):
        with_images(found.target, found.target_images[:1], None, own)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (trajectory(*GOOD, images=["a_1.jpg"]), "2 marks <image> for 1 images"),
        (trajectory(*GOOD, images=["a_1.jpg", "../secret.jpg"]), "is no image of the corpus"),
        (trajectory(*GOOD, images=["a_1.jpg", "none.jpg"]), "there is no file"),
        (trajectory(*GOOD[:3], images=["a_1.jpg"]), "answer 2 of 2 is crop, and all but the last must search or crop"),
        (trajectory("what?", "<image>", "<answer>12</answer>", images=["a_1.jpg"]), "answer 1 of 2 is invalid"),
        (trajectory("<answer>1</answer>", "no", "<answer>12</answer>"), "answer 1 of 2 is answer"),
        (
            trajectory("<search>q</search>", "look: <image>", "<answer>12</answer>", images=["a_1.jpg"]),
            "is <image> or a text, not both",
        ),
        (trajectory("<search>q</search>", "<image>"), "user and assistant must take turns"),
        (trajectory("<answer>12</answer>", asked="<image> What?"), "the first message shows an image"),
        (trajectory("<answer>12</answer>", asked="Question: "), "the first message asks nothing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "a message must be"),
        ({"messages": []}, "user first and assistant last, not none"),
        ([], "must be an object with messages and images"),
        ({**trajectory(*GOOD), "images": "a_1.jpg"}, "must be a list of paths"),
    ],
    ids=range(14),
)
def test_conversations_that_are_none(tmp_path: Path, images: Path, item: Any, message: str) -> None:
    good = trajectory("<answer>12</answer>")
    with pytest.raises(ValueError, match=f"key=.*t.json, item 2: .*{message}"):
        read_trajectories(write(tmp_path / "t.json", [good, item]), images, "bbox", "key")


def test_own_documents_and_questions_become_rows(tmp_path: Path, images: Path, caplog: pytest.LogCaptureFixture) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    pdf(documents / "a.pdf", "quarterly revenue", "headcount")
    elsewhere = {**EXAMPLE, "uid": "e2", "meta_info": {**EXAMPLE["meta_info"], "reference_page": [7]}}
    questions = write(tmp_path / "q.json", {"examples": [EXAMPLE, {**EXAMPLE, "uid": "e3"}, elsewhere]})
    trajectories = write(tmp_path / "t.json", [trajectory(*GOOD, images=["a_1.jpg", "crop.jpg"])])
    given = {
        **task_settings("vrag"), "folder": str(tmp_path / "data"), "documents": str(documents), "dpi": 36, "test_share": 0.5,
    }  # fmt: skip
    assert set(write_splits(tmp_path / "data", given)) == {"corpus"}  # no questions: a corpus to serve
    given |= {"questions": str(questions), "trajectories": str(trajectories), "trajectory_images": str(images)}
    paths = write_splits(tmp_path / "data", given)
    rows = [row for split in ("train", "test") for row in pq.read_table(paths[split]).to_pylist()]
    assert len(rows) == 4 and sum(row["target"] is not None for row in rows) == 1
    assert "1 of 4 questions ask for pages that the corpus" in caplog.text and "a_7" in caplog.text
    assert {row["reward_model"]["ground_truth"] for row in rows} == {"12"}
    twice = write(tmp_path / "twice.json", {"examples": [EXAMPLE, EXAMPLE]})
    with pytest.raises(ValueError, match="uid='e1' stands there twice"):
        write_splits(tmp_path / "data", {**given, "questions": str(twice)})
    with pytest.raises(ValueError, match=r"prepare.task.trajectory_images to the folder"):
        write_splits(tmp_path / "data", {**given, "trajectory_images": None})


def test_settings_of_the_task_file_are_all_read() -> None:
    config = compose_config(["task=vrag", "algorithm=grpo"])
    found = OmegaConf.to_container(config.prepare.task, resolve=True)
    assert isinstance(found, dict)
    read = Settings.from_node({str(key): value for key, value in found.items()})
    assert read.environment == OmegaConf.to_container(config.environment, resolve=True)
    # 5 answers of 512 tokens, 4 images of 512 with 11 tokens around each
    assert config.data.max_response_length == 5 * 512 + 4 * (512 + 11) == 4652
