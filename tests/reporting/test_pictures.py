"""Pictures on the page: what may be opened, how large it becomes, where boxes lie, and what stands in the place of others."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.tasks.vrag.kit import make_corpus
from unify_posttrain.experience.feedback import QWEN_VISION
from unify_posttrain.reporting import build_report
from unify_posttrain.reporting.evaluation_page import build_evaluation_page
from unify_posttrain.reporting.evaluations import Question
from unify_posttrain.reporting.pictures import Pictures, box_of, opened, pictures_of
from unify_posttrain.reporting.run import Run
from unify_posttrain.reporting.settings import load_settings
from unify_posttrain.reporting.thumbnails import Thumbnails
from unify_posttrain.reporting.turns import VISION, cut_parts, turns_of

from .conftest import EVIL, write_lines
from .test_page import Reader
from .test_turns import write_evaluation

LIMITS = load_settings().limits
SEEN = "".join(VISION)  # an image in the text of a dump
PAGE, PART = {"page_id": "deck_2", "rect": [0, 0, 800, 600]}, {"page_id": "deck_2", "rect": [200, 150, 600, 450]}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("pages") / "corpus", size=(800, 600))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """UNIFY_HOME, with a picture in its data."""
    monkeypatch.setenv("UNIFY_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "data" / "shapes" / "images"
    folder.mkdir(parents=True)
    Image.new("RGB", (56, 28), (250, 0, 0)).save(folder / "a.png")
    return tmp_path / "home"


def pixels(uri: str) -> Image.Image:
    head, _, content = uri.partition(",")
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def run_of(folder: Path, **settings: Any) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    return Run(folder, "run", config=settings)


def seen(pictures: Pictures, path: object) -> dict[str, Any]:
    [shown] = pictures.of_prompt([{"image": str(path)}])
    return shown


def test_the_marks_are_those_of_the_model() -> None:
    assert VISION == QWEN_VISION


def test_pictures_of_the_data_are_shown_once_and_embedded(home: Path, tmp_path: Path) -> None:
    thumbnails, folder = Thumbnails(LIMITS), home / "data" / "shapes"
    pictures = pictures_of(run_of(tmp_path / "run", data={"train_files": str(folder / "train.parquet")}), thumbnails)
    first, again = (seen(pictures, folder / "images" / "a.png") for _ in range(2))
    assert first == again == {"caption": "picture 1", "picture": 0, "note": None, "boxes": []}
    [uri] = thumbnails.uris
    assert pixels(uri).size == (56, 28), "small pictures keep their size"


def test_only_folders_of_the_run_its_data_and_the_users_are_looked_into(home: Path, tmp_path: Path) -> None:
    """Neither a dump, nor a configuration of somebody else, nor a link, nor a name that climbs leads elsewhere."""
    secret, mine = tmp_path / "private" / "secret.png", tmp_path / "run"
    run = run_of(mine, data={"train_files": [str(home / "data/shapes/train.parquet")], "image_root": str(secret.parent)})
    secret.parent.mkdir()
    for path in (secret, mine / "own.png", home / "other.png"):
        Image.new("RGB", (9, 9)).save(path)
    os.symlink(secret, mine / "link.png")
    os.symlink(secret.parent, mine / "folder")
    os.mkfifo(mine / "pipe.png")
    (mine / "text.png").write_text("no picture")
    (mine / "notes.txt").write_text("secret")
    pictures = pictures_of(run, Thumbnails(LIMITS))
    assert seen(pictures, mine / "own.png")["picture"] == 0
    outside = [secret, mine / "link.png", mine / "folder" / "secret.png", mine / ".." / "private" / "secret.png", "/etc/passwd"]
    for path in [*outside, f"file://{secret}", home / "other.png", "a\0b.png", "https://example.org/a.png"]:
        note = seen(pictures, path)["note"]
        assert "outside of the folders" in note and "--pictures" in note and "image_root" not in note
        assert f"{secret.parent} is not below UNIFY_HOME." in note
    for name, said in {"pipe.png": "not there", "gone.png": "not there", "text.png": "damaged", "notes.txt": "end with"}.items():
        shown = seen(pictures, mine / name)
        assert shown["picture"] is None and said in shown["note"], name
    assert len(pictures.thumbnails.uris) == 1
    given = pictures_of(run, Thumbnails(LIMITS), given=[secret.parent])
    assert seen(given, secret)["picture"] == 0 and seen(given, "/etc/passwd")["picture"] is None


@pytest.mark.parametrize(
    "reference", [None, 3, {}, {"image": 3}, {"image": "data:image/png;base64,!"}, {"image": "data:image/svg+xml,<svg/>"}, [["x"]]]
)
def test_what_is_no_picture_gets_a_note(reference: Any) -> None:
    [shown] = Pictures(Thumbnails(LIMITS)).of_prompt([reference])
    assert shown["picture"] is None and shown["note"].endswith(".")


def test_pictures_in_a_dump_are_encoded_anew(tmp_path: Path) -> None:
    """A large one is made small: what is embedded is never what somebody wrote."""
    buffer = io.BytesIO()
    Image.effect_noise((1400, 700), 90).save(buffer, format="PNG")
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    thumbnails = Thumbnails(replace(LIMITS, picture_bytes=9000))
    [shown] = Pictures(thumbnails).of_prompt([{"image": uri}])
    assert shown["picture"] == 0 and len(base64.b64decode(thumbnails.uris[0].partition(",")[2])) <= 9000
    assert pixels(thumbnails.uris[0]).width <= LIMITS.picture_side
    small = Thumbnails(replace(LIMITS, picture_pixels=1400 * 700 - 1))
    assert "too large" in Pictures(small).of_prompt([{"image": uri}])[0]["note"]


def test_a_page_holds_no_more_than_its_limit(corpus: Path) -> None:
    thumbnails = Thumbnails(replace(LIMITS, pictures_bytes=1500))
    pictures = opened(thumbnails, [corpus], (), None)
    shown = pictures.of_episode([{"page_id": page, "rect": [0, 0, 800, 600]} for page in ("deck_1", "deck_2", "deck_3", "deck_1")])
    embedded = sum(len(base64.b64decode(uri.partition(",")[2])) for uri in thumbnails.uris)
    kept = [each["picture"] for each in shown if each["picture"] is not None]
    assert 0 < embedded <= 1500 and kept and len(kept) < 4
    assert shown[0] == shown[3], "what is there already is shown again"
    assert "--pictures-bytes" in next(each["note"] for each in shown if each["picture"] is None)


def test_a_box_lies_on_the_image_that_was_cropped(corpus: Path) -> None:
    """A part of a part is drawn on the part: [300, 225, 400, 300] within [200, 150, 600, 450] is .25, .25, .5, .5 of its sides."""
    inner = {"page_id": "deck_2", "rect": [300, 225, 400, 300]}
    other = {"page_id": "deck_3", "rect": [0, 0, 800, 600]}
    shown = opened(Thumbnails(LIMITS), [], (), None).of_episode([PAGE, PART, inner, other])
    assert [each["boxes"] for each in shown] == [[[0.25, 0.25, 0.75, 0.75]], [[0.25, 0.25, 0.5, 0.5]], [], []]
    assert all("--pictures" in each["note"] for each in shown), "boxes are known without the pages"
    found = opened(Thumbnails(LIMITS), [corpus], (), str(corpus)).of_episode([PAGE, PART])
    assert [pixels(each).size for each in opened_uris(corpus, [PAGE, PART])] == [(640, 480), (400, 300)]
    assert found[0]["caption"] == "deck_2, pixels 0, 0 to 800, 600"


def test_a_corpus_of_others_cannot_make_the_page_wait(tmp_path: Path) -> None:
    """Pipes where a page or the list of pages should be; a line that is none."""
    folder = make_corpus(tmp_path / "corpus", size=(80, 60))
    (folder / "pages" / "deck_2.png").unlink()
    os.mkfifo(folder / "pages" / "deck_2.png")
    for lines, note in ((None, "not there"), ("{}\n", "cannot be read"), ("pipe", "cannot be read")):
        if lines is not None:
            (folder / "pages.jsonl").unlink()
            os.mkfifo(folder / "pages.jsonl") if lines == "pipe" else (folder / "pages.jsonl").write_text(lines)
        [shown] = opened(Thumbnails(LIMITS), [tmp_path], (), str(folder)).of_episode([{"page_id": "deck_2", "rect": [0, 0, 8, 6]}])
        assert shown["picture"] is None and note in shown["note"]


def opened_uris(corpus: Path, origins: list[Any]) -> list[str]:
    thumbnails = Thumbnails(LIMITS)
    opened(thumbnails, [corpus], (), None).of_episode(origins)
    return thumbnails.uris


@pytest.mark.parametrize(
    "origin",
    [
        {"page_id": "deck_9", "rect": [0, 0, 9, 9]},
        {"page_id": "../../etc/passwd", "rect": [0, 0, 9, 9]},
        {"page_id": "deck_2", "rect": [0, 0, 9000, 9]},
        {"page_id": "deck_2", "rect": [9, 9, 9, 9]},
        {"page_id": "deck_2", "rect": [0, 0, 9, True]},
        {"page_id": "deck_2"},
        {"page_id": ["deck_2"], "rect": "x"},
        None,
        "deck_2",
    ],
)
def test_pages_that_are_none_get_a_note_and_no_box(corpus: Path, origin: Any) -> None:
    pictures = opened(Thumbnails(LIMITS), [corpus], (), None)
    [_, shown] = pictures.of_episode([PAGE, origin])
    assert shown["picture"] is None and shown["note"].endswith(".") and pictures.of_episode(origin) == []
    assert box_of(PAGE, origin) is None or "deck_2" in json.dumps(origin)


def test_images_stand_where_the_model_got_them_and_nowhere_else() -> None:
    """A model may write the marks out; that shows nothing. Text before and behind an image keeps its place."""
    told = f"\nuser{VISION[0]}{VISION[1] * 9}{VISION[2]}go on"
    parts = [("on", f"look{SEEN}", 0.5), ("untrained", told, None), ("on", "12", 0.5)]
    picture = {"caption": "deck", "picture": 0, "note": None, "boxes": []}
    segments, room = cut_parts(parts, 99, iter([picture]))
    assert segments == [
        ["on", f"look{SEEN}", 0, 0.5], ["untrained", "\nuser", 0, None], ["image", "deck", 0, None, picture],
        ["untrained", "go on", 0, None], ["on", "12", 0, 0.5],
    ]  # fmt: skip
    assert room == 99 - len(f"look{SEEN}\nusergo on12"), "an image takes no characters"
    [_, _, absent, *_] = cut_parts(parts, 99)[0]
    assert absent[4]["picture"] is None and absent[4]["note"] == "This picture is not in the dump."


def test_turns_of_a_dumped_episode_have_reward_verdict_and_images() -> None:
    row = {
        "segments": [["on", "<search>"], ["untrained", f"user{SEEN}"], ["on", "<answer>"]], "advantage": 0.5, "acc": 1.0,
        "turn_scores": [0.0, 1.0], "turn_outcomes": ["no_page", "answer"], "shown_images": [PAGE], "turns": 2.0,
    }  # fmt: skip
    first, last = turns_of(row, 99) or []
    assert (first["reward"], first["solved"], first["verdict"]) == (0.0, False, "no page")
    assert (last["reward"], last["solved"], last["verdict"]) == (1.0, True, "answer")
    assert [segment[0] for segment in first["segments"]] == ["on", "untrained", "image"]
    assert turns_of({**row, "turn_scores": [0.0]}, 99) is None, "another number of turns than of rewards: shown as one text"


def test_a_page_shows_prompts_episodes_and_demonstrations_with_pictures(home: Path, tmp_path: Path, corpus: Path) -> None:
    """From the files to the page: policy, data, escaping. The rollout was dropped and keeps its colours."""
    run, picture = tmp_path / "run", home / "data" / "shapes" / "images" / "a.png"
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump({"data": {"train_files": str(picture.parent.parent / "train.parquet")},
                                                     "environment": {"retriever": {"corpus": str(corpus)}}}))  # fmt: skip
    base = {"input": "How many?", "gts": "12", "step": 1, "uid": "a", "row_id": 0}
    write_lines(run / "rollouts" / "1.jsonl", [
        base | {"output": "w", "score": 1.0, "row_kind": "demonstration", "pictures": [{"image": str(picture)}],
                "segments": [["demo", "a"], ["untrained", SEEN], ["demo", "b"]], "shown_images": [PAGE]},
        base | {"output": "w", "score": 0.0, "row_kind": "dropped", "turn_scores": [0, 0, 0], "turn_outcomes": ["x", "y", EVIL],
                "segments": [["on", "a"], ["untrained", SEEN], ["on", "b"], ["untrained", SEEN], ["on", f"c{EVIL}"]],
                "shown_images": [PAGE, {**PART, "page_id": EVIL}]},
    ])  # fmt: skip
    page = Reader(build_report([run], pictures=[corpus]))
    [policy] = [each["content"] for name, each in page.elements if name == "meta" and each.get("http-equiv")]
    assert policy is not None and "default-src 'none'; img-src data:;" in policy
    [prompt] = page.data["rollouts"][0][0]["prompts"]
    assert len(page.data["pictures"]) == 2 and prompt["pictures"][0]["picture"] is not None
    [demonstration], [dropped] = prompt["demonstrations"], prompt["rollouts"]
    assert demonstration["segments"][1][4]["picture"] is not None
    assert [[segment[0] for segment in turn["segments"]] for turn in dropped["turns"]] == [["on", "image"], ["on", "image"], ["on"]]
    assert dropped["turns"][1]["segments"][1][4]["note"].startswith("This page is not in the corpus")
    assert "owned" not in "".join(name for name, _ in page.elements)


def test_the_page_of_an_evaluation_shows_questions_answers_and_pages(tmp_path: Path, corpus: Path) -> None:
    folder = write_evaluation(tmp_path / "gp")
    where = folder / "samples" / "step_40" / "gp_ood"
    where.joinpath("settings.json").write_text(json.dumps({"environment": {"retriever": {"corpus": str(corpus)}}}))
    turns = [{"text": "<search>", "feedback": "<image>", "reward": 0, "images": [PAGE]}, {"text": "<image>", "reward": -1}]
    write_lines(where / "samples.jsonl", [{"row": 1, "number": 0, "correct": 0, "answer": "13", "turns": turns, "stop": "turns",
                                          "fields": {"recall": 1.0, "n_crop": 0.0, "acc": 0.0}}])  # fmt: skip
    questions = {("gp_ood", 1): Question("What is it?", "12")}
    page = Reader(build_evaluation_page(folder, questions, [corpus]))
    [shown] = [p for p in page.data["evaluations"][0]["steps"][1]["prompts"] if p["prompt"] == "gp_ood, row 1: What is it?"]
    [row] = shown["rows"]
    assert shown["gold"] == "12" and row["fields"] == {"ended": "turns", "answer": "13", "recall": "1"}
    assert [segment[0] for segment in row["turns"][0]["segments"]] == ["on", "image"] and len(page.data["pictures"]) == 1
    assert row["turns"][1]["segments"] == [["on", "<image>", 0, None]], "the model wrote that"
    assert Reader(build_evaluation_page(folder)).data["pictures"] == [], "that folder is nobody's but the file's"


def test_evaluate_writes_the_page(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    from types import SimpleNamespace

    import pyarrow as pa
    import pyarrow.parquet as pq

    from unify_posttrain.evaluate import write_page

    folder, file = write_evaluation(tmp_path / "gp"), tmp_path / "test.parquet"
    rows = [{"data_source": "gp_ood", "prompt": [{"role": "user", "content": f"ask {k}"}], "reward_model": {"ground_truth": "t"},
             "extra_info": {"index": k}} for k in range(3)]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), file)
    benchmark = SimpleNamespace(name="gp_ood", files=[file], max_samples=None, sample_seed=None, sources=None, environment=None)
    path = write_page(SimpleNamespace(output=folder, benchmarks=[benchmark]))  # type: ignore[arg-type]
    prompts = Reader(path.read_text()).data["evaluations"][0]["steps"][0]["prompts"]
    assert path == folder / "samples.html" and "gp_ood, row 2: ask 2" in [prompt["prompt"] for prompt in prompts]
