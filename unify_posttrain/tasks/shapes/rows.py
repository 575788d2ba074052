"""Rows, pictures and files of the task: `train.parquet` and `test.parquet`, which name pictures in the folder `images`."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unify_posttrain.preparation.store import replace_file
from unify_posttrain.tasks import files
from unify_posttrain.tasks.shapes.drawing import draw, fingerprint
from unify_posttrain.tasks.shapes.scenes import IMAGE, LEVEL, Scene, check_hits, count_scenes, draw_scene, draw_scenes

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGES = "images"  # column of the rows, in verl's form, and folder of the pictures
FOLDER_KEYS = ("seed", "cell", "hits", "splits")
SCHEMA = files.schema(side=pa.int64()).append(pa.field(IMAGES, pa.list_(pa.struct([("image", pa.string())]))))
MANIFEST_FORMAT = 1  # raise it when the rows for equal settings change: old folders are then rebuilt


def check_cell(cell: Any, where: str = "cell") -> int:
    """Pixels of a cell's side; ValueError unless it is an integer from 14 to 280."""
    if type(cell) is not int or not 14 <= cell <= 280:
        raise ValueError(f"{where}={cell!r}: give the pixels of a cell's side, an integer from 14 to 280; 28 make one image token")
    return cell


def image_name(scene: Scene, cell: int) -> str:
    """Where the picture of a scene lies, from the folder of the data files on."""
    return f"{IMAGES}/{fingerprint(scene, cell)}.png"


def build_scenes(split_settings: Mapping[str, Any], seed: int, cell: int, hits: int) -> list[tuple[files.Row, Scene]]:
    """The rows of all splits with their scenes, train rows first; equal arguments give equal rows.

    Args:
        split_settings: {easy|hard|ood: {side: list of sides, train: rows, test: rows}}.
        seed: of the draw.
        cell: pixels of a cell's side.
        hits: the most shapes that are asked for in a picture.

    Returns:
        One mapping per row with the columns of :data:`SCHEMA`. No scene occurs twice, be it within a file or across train and
        test.

    Raises:
        ValueError: unknown split, a side out of range, an ``ood`` split that is trained on or not larger than the others, or more
            rows than distinct scenes; the message names key, value and remedy.
    """
    check_cell(cell)
    check_hits(hits)
    scenes: dict[int, Scene] = {}  # by identity of the row: `files.build_rows` orders rows, and tells nothing of what they show

    def row(side: int, scene: Scene) -> files.Row:
        solution = scene.worked_solution()
        made = files.make_row("counting", scene.question, solution, str(scene.count), side=side)
        made[IMAGES] = [{"image": image_name(scene, cell)}]
        scenes[id(made)] = scene
        return made

    def drawn(generator: random.Random, side: int, count: int) -> list[Scene]:
        return draw_scenes(generator, side, count, hits)

    def available(side: int) -> int:
        return count_scenes(side, hits)

    rows = files.build_rows("shapes", split_settings, seed, LEVEL, available, drawn, row)
    return [(made, scenes[id(made)]) for made in rows]


def write_splits(folder: Path, settings: Mapping[str, Any]) -> dict[str, Path]:
    """Write ``train.parquet``, ``test.parquet``, their pictures and ``manifest.json``; nothing to do if all are there.

    Args:
        folder: made if missing.
        settings: {seed: int, cell: pixels, hits: int, splits: see :func:`build_scenes`}; ``name`` and ``folder`` may be there and
            are ignored.

    Returns:
        {"train": path, "test": path}.

    Raises:
        ValueError: unknown or missing keys, or settings that :func:`build_scenes` refuses.
    """
    settings, folder = files.row_settings("shapes", settings, FOLDER_KEYS), Path(folder)
    rows = build_scenes(settings["splits"], settings["seed"], settings["cell"], settings["hits"])
    (folder / IMAGES).mkdir(parents=True, exist_ok=True)
    for made, scene in rows:
        path = folder / made[IMAGES][0]["image"]
        if not path.is_file():  # a picture's name says what it shows, and it is there whole or not at all
            replace_file(path, partial(draw(scene, settings["cell"]).save, format="PNG"))
    identity = {"format": MANIFEST_FORMAT, "settings": settings}
    return files.write_files(folder, identity, SCHEMA, lambda: [made for made, _ in rows])


class PretrainingExamples:
    """Scenes to pretrain a base model with, drawn afresh; the draw does not know the test file.

    Args:
        settings: ``side`` {side: share of the examples}, ``careless`` {side: share of its examples that count every row by
            itself}, ``cell`` and ``hits``; keys may be strings, as JSON makes them.

    Raises:
        ValueError: a share, ``cell`` or ``hits`` out of range, or a share of a side that is none.
    """

    KEYS = ("side", "careless", "cell", "hits")

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.shares, self.careless = files.shares_by_level(LEVEL, settings)
        self.cell, self.hits = check_cell(settings["cell"], "pretraining.cell"), check_hits(settings["hits"], "pretraining.hits")

    @property
    def longest(self) -> tuple[str, str]:
        """A question and a worked solution of as many characters as any has."""
        largest = max(self.shares)
        scene = Scene(("yellow", "circle"), (None,) * largest**2)
        return scene.question, scene.worked_solution()

    @property
    def largest_picture(self) -> int:
        """Pixels of the side of the largest picture."""
        return max(self.shares) * self.cell

    def draw(self, generator: random.Random, count: int) -> list[tuple[str, str, Image]]:
        """``count`` questions without the mark of the picture, their solutions, and the pictures."""
        sides: Sequence[int] = generator.choices(list(self.shares), weights=list(self.shares.values()), k=count)
        scenes = [draw_scene(generator, side, self.hits) for side in sides]
        slips = [generator.random() < self.careless.get(side, 0.0) for side in sides]
        return [
            (scene.question.removesuffix(IMAGE), scene.worked_solution(careless=slip), draw(scene, self.cell))
            for scene, slip in zip(scenes, slips, strict=True)
        ]
