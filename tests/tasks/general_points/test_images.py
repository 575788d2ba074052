"""General points with cards as pictures: places and colours of cards, sources, words, the cards that an answer has to name."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.tasks.environments import node, task_settings
from unify_posttrain.tasks import PREPARERS
from unify_posttrain.tasks.environment import begin, compute_score
from unify_posttrain.tasks.general_points import rendering
from unify_posttrain.tasks.general_points.cards import COLOURS, LABELS, RED, SIGNS, Hand
from unify_posttrain.tasks.general_points.image_rows import ImageSettings, build_image_rows
from unify_posttrain.tasks.general_points.prompts import PLACES, question

SMALL = {"train": 30, "gp_id": 8, "gp_id_seen": 4, "gp_ood": 8, "gp_ood_target": 2, "gp_ood_visual": 8}
BASE = {**task_settings("general_points_images_small"), "rows": SMALL}


def rows_of(**changes: Any) -> list[dict[str, Any]]:
    return build_image_rows(ImageSettings.from_node({**BASE, **changes}))


def hand_of(row: dict[str, Any]) -> Hand:
    return Hand.from_truth(json.loads(row["reward_model"]["ground_truth"]))


def png(labels: tuple[str, ...], suits: str, resolution: int = 300) -> bytes:
    rendering._card.cache_clear()
    buffer = io.BytesIO()
    rendering.draw(labels, suits, resolution).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("resolution", "size", "left", "top"),
    [
        (1200, (270, 378), [5, 302, 599, 896], 411),
        (448, (100, 140), [5, 115, 225, 335], 154),
        (300, (67, 93), [5, 78, 152, 226], 103),
    ],
)
def test_cards_are_where_published_pictures_have_them(resolution: int, size: tuple[int, int], left: list[int], top: int) -> None:
    assert rendering.card_size(resolution) == size
    assert rendering.card_places(resolution) == [(x, top) for x in left]
    picture = rendering.draw(("A", "10", "Q", "7"), "CDHS", resolution)
    assert picture.size == (resolution, resolution) and picture.mode == "RGB"
    paper = {x for x in range(resolution) if picture.getpixel((x, top + 2 * size[1] // 3)) == rendering.PAPER}
    assert paper and all(any(x <= each < x + size[0] for x in left) for each in paper), "cards and nothing besides"
    assert all(picture.getpixel((x - 1, top + size[1] // 2)) == rendering.TABLE for x in left)


def test_a_hand_is_always_the_same_picture_and_another_one_another() -> None:
    hand = ("K", "10", "A")
    assert png(hand, "CSC") == png(hand, "CSC")
    different = [png(hand, "CSC"), png(hand, "SSC"), png(("K", "A", "10"), "CSC"), png(hand, "CSC", 301), png((*hand, "2"), "CSCC")]
    assert len(set(different)) == len(different)
    names = {rendering.fingerprint(*each) for each in ((hand, "CSC", 300), (hand, "SSC", 300), (hand, "CSC", 301))}
    assert len(names) == 3 and rendering.fingerprint(hand, "CSC", 300) in names
    singles = {png((label,), suit, 140) for label in LABELS for suit in SIGNS}
    assert len(singles) == len(LABELS) * len(SIGNS), "every card can be told from every other one, small as it is"


@pytest.mark.parametrize("suit", SIGNS)
def test_the_ink_has_the_colour_of_the_suit(suit: str) -> None:
    colours = {colour for _, colour in rendering.draw(("7", "K"), suit * 2, 448).getcolors(1 << 16)}
    drawn = colours - {rendering.TABLE, rendering.PAPER, rendering.EDGE}
    assert rendering.INK[suit in RED] in drawn and rendering.INK[suit not in RED] not in drawn
    red = [colour for colour in drawn if colour[0] > colour[1] + 9]
    assert len(red) > 9 if suit in RED else red == []


def test_sources_differ_in_what_they_say_they_differ_in() -> None:
    rows = rows_of()
    by_source: dict[str, list[Hand]] = {}
    for row in rows:
        by_source.setdefault(row["data_source"], []).append(hand_of(row))
    assert {source: len(hands) for source, hands in by_source.items()} == {"gp_train": 30, **dict(list(SMALL.items())[1:])}
    visual = by_source.pop("gp_ood_visual")
    assert [hand.labels for hand in visual] == [hand.labels for hand in by_source["gp_id"]]
    assert {hand.rule for hand in visual} == {"ten"} and {hand.rule for hand in by_source["gp_ood"]} == {"rank"}
    assert {suit for hand in visual for suit in hand.suits} == set(COLOURS["red"])
    for source, hands in by_source.items():
        assert {suit for hand in hands for suit in hand.suits} == set(COLOURS["black"]), source
    assert rows == rows_of() and rows_of(seed=1) != rows
    mixed = rows_of(suits="mixed", rows={**SMALL, "gp_ood_visual": 0})
    assert {suit for row in mixed for suit in hand_of(row).suits} == set(SIGNS)


@pytest.mark.parametrize("style", ["native", "upstream", "compact"])
def test_the_picture_stands_first_and_the_prompt_names_no_card(style: str) -> None:
    shown, named = Hand(("K", "9", "3"), "ten", 24, style, ("C", "S", "C")), Hand(("K", "9", "3"), "ten", 24, style)
    text = question(shown)
    assert text.startswith("<image>") and text.count("<image>") == 1 and "[Input]" not in text and "9" not in text
    assert "<image>" not in question(named) and "9" in question(named)
    assert question(Hand(("2", "2", "9"), "ten", 24, style, ("S", "S", "S"))) == text, "only the picture tells hands apart"
    assert question(shown, "Make {target}: {rule}").startswith("<image>Make 24: ")


def test_an_answer_has_to_name_the_cards_that_are_shown() -> None:
    row = rows_of()[0]
    hand, worked = hand_of(row), row["target"][0]["content"]
    labels = " ".join(hand.labels)
    other = next(label for label in LABELS if label not in hand.labels)
    settings = node("general_points", max_turns=3)

    def judged(*answers: str) -> Any:
        episode = begin(settings, row)
        return [episode.step(answer, True) for answer in answers]

    [right] = judged(worked)
    assert right.solved and right.reward == 5
    turned = worked.replace(f"c:{labels}", f"c:{' '.join(reversed(hand.labels))}")
    assert judged(turned)[0].solved, "in any order"
    for wrong in (worked.replace(f"c:{labels}", f"c:{labels} {other}"), worked.replace(f"c:{hand.labels[0]} ", f"c:{other} ", 1),
                  worked[worked.index("n:") :].join("{}"), worked.replace("c:", "d:")):  # fmt: skip
        [step] = judged(wrong)
        assert (step.outcome, step.reward, step.feedback) == ("incorrect_vision", -1.5, ("no:c",)), wrong
    fields = compute_score("gp_id", worked.replace("c:", "d:"), row["reward_model"]["ground_truth"], environment=settings)
    assert fields["outcome_incorrect_vision"] == 1 and fields["acc"] == 0
    named = {**json.loads(row["reward_model"]["ground_truth"])}
    named.pop("suits")
    told = compute_score("gp_id", worked.replace("c:", "d:"), json.dumps(named), environment=settings)
    assert told["acc"] == 1, "cards that the prompt names need not be repeated"


def test_files_pictures_and_what_is_exported_and_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    paths = PREPARERS["general_points_images"](folder, {**BASE, "revise": 0.5, "export": "sharegpt"})
    train, test = (pq.read_table(paths[name]).to_pylist() for name in ("train", "test"))
    for row in train + test:
        [image] = row["images"]
        with Image.open(folder / image["image"]) as picture:
            assert picture.size == (140, 140)
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert len(files) == 2 + len({row["images"][0]["image"] for row in train + test})
    next(iter(folder.glob("images/*.png"))).unlink()
    PREPARERS["general_points_images"](folder, {**BASE, "revise": 0.5, "export": "sharegpt"})
    again = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".json"}
    assert set(again) == set(files) and sum(again[path] != files[path] for path in files) == 1, "what is absent is drawn again"
    given = task_settings(
        "convert", f"prepare.task.source={paths['sharegpt']}", "prepare.task.layout=sharegpt",
        "prepare.task.columns.prompt=conversations", "prepare.task.columns.images=image", "prepare.task.constants.style=model",
    )  # fmt: skip
    found = pq.read_table(PREPARERS["convert"](tmp_path / "read", given)["train"]).to_pylist()
    assert [row["images"] for row in found] == [row["images"] for row in train], "hands with equal prompts are no duplicates"
    for before, after in zip(train, found, strict=True):
        assert [*after["prompt"], *after["target"]] == [*before["prompt"], *before["target"]]
    manifest = json.loads((tmp_path / "read" / "manifest.json").read_text())
    assert "media_left_out" not in json.dumps(manifest)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suits": "green"}, r"prepare.task.suits='green' is unknown; choose one of black, red, mixed"),
        ({"resolution": 60}, r"prepare.task.resolution=60: give the pixels of a picture's side, an integer from 84 to 2800"),
        ({"suits": "mixed"}, r"prepare.task.rows.gp_ood_visual=8 asks for the other colour, and prepare.task.suits=mixed has none"),
        ({"rows": {**SMALL, "gp_ood_visual": 10**6}}, r"prepare.task.rows.gp_ood_visual=1000000: only \d+ distinct ones exist"),
        ({"rows": {key: SMALL[key] for key in list(SMALL)[:-1]}}, r"prepare.task.rows=.*give exactly train, .*gp_ood_visual"),
    ],
)
def test_settings_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rows_of(**changes)


@pytest.mark.parametrize("place", [*PLACES[:2], "<image>"])
def test_a_template_that_names_the_cards_is_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "template.txt"
    path.write_text(f"Make {{target}} of {place}")
    with pytest.raises(ValueError, match=r"the cards are shown as a picture in front of the text; take .* out of it"):
        rows_of(prompt_file=str(path))
    path.write_text("Make {target}")
    assert rows_of(prompt_file=str(path))[0]["prompt"][0]["content"] == "<image>Make 24"


@pytest.mark.parametrize("suits", [["C"], ["C", "S", "X"], "CSC", ["C", "S", None]])
def test_suits_that_are_none_make_no_hand(suits: Any) -> None:
    truth = {"cards": ["K", "3", "8"], "rule": "ten", "target": 24, "style": "compact", "suits": suits}
    with pytest.raises(ValueError, match=r"suits=.*give one of C, D, H, S for each card"):
        Hand.from_truth(truth)
