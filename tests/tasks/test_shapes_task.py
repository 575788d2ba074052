"""The task of counting shapes: worked solutions, verifier, pictures, and splits as pure functions of their settings."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from PIL import Image

from unify_posttrain.tasks.shapes import drawing, rows, scenes
from unify_posttrain.tasks.shapes.scenes import Scene

CONF = Path(__file__).parents[2] / "conf"
RED, BLUE = ("red", "circle"), ("blue", "circle")
SPLITS = {
    "easy": {"side": [2], "train": 0, "test": 6},
    "hard": {"side": [3], "train": 20, "test": 6},
    "ood": {"side": [4], "train": 0, "test": 4},
}
SETTINGS = {"name": "shapes", "folder": "ignored", "seed": 3, "cell": 28, "hits": 4, "splits": SPLITS}
SCENE = Scene(RED, (None, RED, BLUE, None, None, None, RED, RED, ("red", "square")))


def score(text: str, truth: str = "3") -> float:
    found = scenes.compute_score("shapes_hard", text, truth)
    assert found["score"] == found["acc"]
    return found["score"]


def test_worked_solution_by_hand() -> None:
    assert SCENE.question == "How many red circles?<image>" and SCENE.count == 3
    assert SCENE.worked_solution() == ".rb r1 1\n... r0 1\nrrR r2 3\nanswer 3"
    # every row by itself: the last one's two are taken for all
    assert SCENE.worked_solution(careless=True) == ".rb r1 1\n... r0 0\nrrR r2 2\nanswer 2"


def test_neither_colour_nor_shape_alone_gives_the_answer() -> None:
    drawn = scenes.draw_scenes(random.Random(0), 4, 200, hits=6)
    for part in (0, 1):
        alone = [sum(cell is not None and cell[part] == scene.asked[part] for cell in scene.cells) for scene in drawn]
        assert sum(count == scene.count for count, scene in zip(alone, drawn, strict=True)) < 40


def test_every_answer_is_equally_likely_and_careless_solutions_are_mostly_wrong() -> None:
    drawn = [scenes.draw_scene(random.Random(seed), 4, hits=6) for seed in range(700)]
    counts = [sum(scene.count == answer for scene in drawn) for answer in range(7)]
    assert min(counts) > 60 and sum(counts) == 700  # 100 each
    right = sum(score(scene.worked_solution(careless=True), str(scene.count)) for scene in drawn)
    assert 0.12 < right / 700 < 0.25  # 1 of 7 has none, of those with one a quarter has it in the last row: 0.18 and a little
    assert all(score(scene.worked_solution(), str(scene.count)) for scene in drawn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer 3", 1.0),
        ("gB. r0 0\nanswer 3", 1.0),  # an outcome reward: the rows are not checked
        ("answer 03", 0.0),
        ("answer 3 ", 0.0),
        ("answer 3\nanswer 3", 0.0),
        ("answer 2", 0.0),
        ("answer \uff13", 0.0),
        ("3", 0.0),
        ("", 0.0),
    ],
)
def test_verifier_cases(text: str, expected: float) -> None:
    assert score(text) == expected


def test_verifier_refuses_defective_data() -> None:
    with pytest.raises(TypeError, match="must be a string of digits, got int"):
        scenes.compute_score("shapes_hard", "answer 3", 3)


def test_number_of_scenes_is_that_of_an_enumeration() -> None:
    # side 2, at most one of 4 cells a hit: 8 kinds x (8^4 without, 4 x 8^3 with one)
    assert scenes.count_scenes(2, 1) == 8 * (8**4 + 4 * 8**3)


def test_pictures_show_their_scenes() -> None:
    image = drawing.draw(SCENE, 28)
    assert image.size == (84, 84) and image.mode == "RGB"
    assert image.tobytes() == drawing.draw(Scene(BLUE, SCENE.cells), 28).tobytes()  # what is asked does not change the picture
    for place, kind in enumerate(SCENE.cells):
        row, column = divmod(place, 3)
        cell = image.crop((column * 28, row * 28, column * 28 + 28, row * 28 + 28))
        colours = {colour for _, colour in cell.getcolors()}
        assert colours == {drawing.BACKGROUND} | (set() if kind is None else {drawing.RGB[kind[0]]})


def test_splits_are_pure_seeded_and_disjoint() -> None:
    built = rows.build_scenes(SPLITS, 3, 28, 4)
    assert [row for row, _ in built] == [row for row, _ in rows.build_scenes(SPLITS, 3, 28, 4)]
    assert [row for row, _ in built] != [row for row, _ in rows.build_scenes(SPLITS, 4, 28, 4)]
    assert len({scene for _, scene in built}) == len(built) == 36
    for row, scene in built:
        assert row["extra_info"]["side"] == scene.side and row["reward_model"]["ground_truth"] == str(scene.count)
        assert row["prompt"][0]["content"].count("<image>") == len(row["images"]) == 1
        assert "".join(row["hint"]) == row["target"][0]["content"] == scene.worked_solution()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"cell": 7}, "cell=7"),
        ({"hits": 10}, "hits=10"),
        ({"splits": {"hard": {"side": [1], "train": 1, "test": 1}}}, "use integers from 2 to 9"),
        ({"splits": {"hard": {"side": [2], "train": 400_000, "test": 1}}}, "distinct problems of side=2"),
        ({"surplus": 1}, "give exactly seed and cell and hits and splits"),
    ],
)
def test_settings_that_make_no_task(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rows.write_splits(tmp_path, SETTINGS | change)


def test_files_name_pictures_that_are_there_and_missing_ones_are_drawn_again(tmp_path: Path) -> None:
    files = rows.write_splits(tmp_path, SETTINGS)
    train = pq.read_table(files["train"]).to_pylist()
    assert len(train) == 20 and pq.read_table(files["test"]).num_rows == 16
    pictures = {row["images"][0]["image"] for row in train}
    assert not any(Path(name).is_absolute() for name in pictures)
    name = sorted(pictures)[0]
    before = (tmp_path / name).read_bytes()
    with Image.open(tmp_path / name) as image:
        assert image.size == (84, 84)
    (tmp_path / name).unlink()
    rows.write_splits(tmp_path, SETTINGS)
    assert (tmp_path / name).read_bytes() == before


def test_the_longest_rows_fit_the_limits_of_the_conf_file() -> None:
    conf = OmegaConf.load(CONF / "task" / "shapes.yaml")
    side = conf.prepare.task.splits.ood.side[0]
    scene = Scene(("yellow", "circle"), (None,) * side**2)
    prompt = side**2 + 2 + len(scene.question.removesuffix("<image>")) + 8
    assert prompt <= conf.data.max_prompt_length and len(scene.worked_solution()) + 1 == 64 <= conf.data.max_response_length
